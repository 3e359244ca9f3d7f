"""Where the parts of a transformer are, found by structure and not by name."""

from __future__ import annotations

from torch import nn

from expunge.errors import Unsupported

ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
"""The modules in which activation functions are defined."""


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of each block, from the input to the output.

    They are the elements of the ``nn.ModuleList`` or ``nn.Sequential`` with the most parameters of which
    all elements are of one class and have modules inside: the decoder layers of a language model.

    Raises:
        Unsupported: there is no such list.
    """
    lists = {name: module for name, module in model.named_modules() if _alike(module)}
    if not lists:
        raise Unsupported(
            "the model has no list of blocks of one class, as transformers have. "
            "Use the scope modules or last_layers, or name the modules where the method lets you."
        )
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in lists.items()}
    name = max(sizes, key=lambda key: sizes[key])
    return [(f"{name}.{key}".lstrip("."), block) for key, block in lists[name].named_children()]


def feed_forwards(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of each feed-forward layer: the parts of the blocks with an activation function inside.

    In a mixture of experts that is the layer as a whole, router included.

    Raises:
        Unsupported: no block has such a part.
    """
    found = [
        (f"{name}.{key}", part)
        for name, block in blocks(model)
        for key, part in block.named_children()
        if any(_activates(module) for module in part.modules()) and any(True for _ in part.parameters())
    ]
    if not found:
        raise Unsupported(
            "no block of the model has a part with an activation function in it, which is how feed-forward "
            "layers are found. Use the scope modules with their names."
        )
    return found


def value_matrices(model: nn.Module) -> list[tuple[str, int]]:
    """The matrix that each block's feed-forward layer ends with: its name and the dimension of its units.

    ``weight.select(dim, i)`` is the value vector of unit ``i``: what the layer adds to the residual stream
    where that unit is active. ``dim`` is 1 for ``nn.Linear`` and 0 for the transposed layers of GPT-2.

    Raises:
        Unsupported: a block with no feed-forward layer or several of them, as mixtures of experts have.
    """
    found = []
    for name, block in blocks(model):
        parents = [
            (path, module)
            for path, module in block.named_modules()
            if any(_activates(child) for child in module.children())
        ]
        layers = [
            (f"{name}.{path}.{key}.weight", 1 if isinstance(layer, nn.Linear) else 0)
            for path, module in parents
            for key, layer in module.named_modules()
            if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
        ]
        if len(parents) != 1 or not layers:
            raise Unsupported(
                f"'{name}' has {len(parents)} activation functions over {len(layers)} linear layers, and "
                "value vectors belong to one dense feed-forward layer a block. Use another method: npo."
            )
        found.append(layers[-1])
    return found


def _alike(module: nn.Module) -> bool:
    parts = list(module.children())
    containers = (nn.ModuleList, nn.Sequential)
    return (
        isinstance(module, containers)
        and len({type(part) for part in parts}) == 1
        and not isinstance(parts[0], containers)
        and any(True for _ in parts[0].children())
    )


def _activates(module: nn.Module) -> bool:
    return type(module).__module__ in ACTIVATIONS and not isinstance(
        module, (nn.MultiheadAttention, nn.Softmax)
    )
