"""What models are for: classification, regression, next-token prediction, denoising."""

from expunge.tasks.base import Task, tasks
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.classification import Classification
from expunge.tasks.diffusion import Diffusion
from expunge.tasks.gan import GAN
from expunge.tasks.image_text import ImageText
from expunge.tasks.regression import Regression
from expunge.tasks.vision_language import VisionLanguage

__all__ = [
    "GAN",
    "CausalLM",
    "Classification",
    "Diffusion",
    "ImageText",
    "Regression",
    "Task",
    "VisionLanguage",
    "tasks",
]
