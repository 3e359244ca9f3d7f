"""Data sets and what to forget of them."""

from expunge.data.arrays import ArrayData, Batch, Data, fixed_order, random_order
from expunge.data.augment import Augment, CropFlip
from expunge.data.source import DataSource, Sourced, sources
from expunge.data.split import Split, as_data, read_ids
from expunge.data.stream import StreamData

__all__ = [
    "ArrayData",
    "Augment",
    "Batch",
    "CropFlip",
    "Data",
    "DataSource",
    "Sourced",
    "Split",
    "StreamData",
    "as_data",
    "fixed_order",
    "random_order",
    "read_ids",
    "sources",
]
