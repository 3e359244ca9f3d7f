"""Runs functions out of the authors' checkouts beside the micro models; nothing of theirs is kept here.

Their scripts load checkpoints of gigabytes and end in a saved model. What is run is the function, or the
block of statements, that has the loss in it, read out of their file when the bench runs, in a namespace whose
other names are stand-ins: loaders that hand out the bench's batches, draws that are the bench's, and an
optimiser that stops the run when it is asked to step.
"""

from __future__ import annotations
import __future__

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from authors_generative_setup import Gradients, Stage
from torch import Tensor, nn

from expunge.data.captions import tokenise


class Stopped(Exception):
    """A run has come to the step of its optimiser."""


class Script:
    """A module with some names replaced, at any depth: ``Script(torch, cuda=…)``."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module, self._others = module, others

    def __getattr__(self, name: str) -> Any:
        return self._others[name] if name in self._others else getattr(self._module, name)


class Optimiser:
    """Takes no step: calls ``then`` with the parameters at each, the last of which stops the run."""

    def __init__(self, parameters: Any, *rest: Any, then: Sequence[Callable[[Any], None]] = (), **more: Any):
        self.parameters, self.then = list(parameters), list(then)

    def zero_grad(self, *_: Any, **__: Any) -> None:
        for parameter in self.parameters:
            if isinstance(parameter, Tensor):
                parameter.grad = None

    def step(self, *_: Any) -> None:
        if not self.then:
            raise Stopped
        self.then.pop(0)(self.parameters)


def borrowed(file: Path, *names: str, constants: dict[Any, Any] | None = None, **namespace: Any) -> Any:
    """Functions and classes out of a file, wherever they are defined in it, as attributes.

    Args:
        constants: numbers in them that are replaced.
        namespace: what their global names mean.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = [node for node in ast.walk(tree) if isinstance(node, kinds) and node.name in names]
    if missing := set(names) - {node.name for node in found}:
        raise SystemExit(f"{file} has no {', '.join(sorted(missing))}.")
    return SimpleNamespace(**_run(list(found), file, constants, namespace))


def block(
    file: Path, around: str, *, until: str, constants: dict[Any, Any] | None = None, **namespace: Any
) -> Any:
    """Runs the statements of the ``with`` or ``if`` that begins so, to the first that has ``until`` in it."""
    source = file.read_text(encoding="utf-8")
    kinds = (ast.With, ast.If)
    (body,) = [
        node.body
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kinds) and (ast.get_source_segment(source, node) or "").startswith(around)
    ]
    ends = [i for i, node in enumerate(body) if until in (ast.get_source_segment(source, node) or "")]
    return SimpleNamespace(**_run(list(body[: ends[0] + 1]), file, constants, namespace))


def _run(
    body: list[ast.stmt], file: Path, constants: dict[Any, Any] | None, namespace: dict[str, Any]
) -> dict[str, Any]:
    for node in body:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and constants and type(part.value) is int:
                part.value = constants.get(part.value, part.value)
            if isinstance(part, ast.FunctionDef):
                part.decorator_list = [d for d in part.decorator_list if "no_grad" in ast.unparse(d)]
    code = compile(
        ast.fix_missing_locations(ast.Module(body, [])),
        str(file),
        "exec",
        flags=__future__.annotations.compiler_flag,
    )
    exec(code, namespace)
    return namespace


def stopped(run: Callable[..., Any], *arguments: Any, **named: Any) -> SimpleNamespace:
    """The local names of their function when its optimiser was asked to step."""
    try:
        run(*arguments, **named)
    except Stopped as stop:
        trace = stop.__traceback__
        while trace is not None:
            frame, trace = trace.tb_frame, trace.tb_next
            if frame.f_code.co_name == run.__name__ or frame.f_code.co_name == "<module>":
                return SimpleNamespace(**frame.f_locals)
    raise SystemExit(f"{run.__name__} came to its end without a step.")


def repeated(*values: Tensor) -> Callable[..., Tensor]:
    """Gives these values in turn, again and again, whatever it is asked for."""
    turn = [0]

    def draw(*_: Any, **__: Any) -> Tensor:
        value = values[turn[0] % len(values)]
        turn[0] += 1
        return value.clone()

    return draw


def gradients(model: nn.Module, prefix: str = "unet.") -> Gradients:
    """What their backward pass left in the parameters, by name; and none is left."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name.startswith(prefix):
            found[name] = parameter.grad.detach().clone().numpy()
        parameter.grad = None
    return found


class Compvis(nn.Module):
    """A text-to-image model with the methods of CompVis' ``LatentDiffusion``, in whose images latents are.

    Args:
        losses: ``p_losses`` and ``get_loss`` of their ``LatentDiffusion``.
        posterior: standard deviation of the autoencoder's posterior, drawn anew at each encoding.
        retained: noise and timesteps of ``shared_step``.
    """

    first_stage_key, parameterization, loss_type = "jpg", "eps", "l2"
    learn_logvar, l_simple_weight, original_elbo_weight = False, 1.0, 0.0
    device = torch.device("cpu")

    def __init__(
        self,
        stage: Stage,
        model: nn.Module,
        losses: Any = None,
        posterior: float = 0.0,
        retained: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.own, self.stage, self.posterior, self.retained = [model], stage, posterior, retained
        self.model = SimpleNamespace(diffusion_model=Renamed(model))
        self.draws = torch.Generator().manual_seed(1)
        self.num_timesteps = stage.task.timesteps
        kept = stage.task.signal_left
        before = torch.cat([torch.ones(1), kept[:-1]])
        self.alphas_cumprod, self.alphas_cumprod_prev, self.betas = kept, before, 1 - kept / before
        self.logvar = self.lvlb_weights = torch.zeros(self.num_timesteps)
        self.losses = losses

    def get_loss(self, *arguments: Any, **named: Any) -> Tensor:
        return self.losses.get_loss(self, *arguments, **named)  # type: ignore[no-any-return]

    def get_learned_conditioning(self, texts: list[str]) -> Tensor:
        tokenizer = self.stage.split.forget.tokenizer  # type: ignore[attr-defined]
        with torch.no_grad():
            return self.own[0].encode_text(tokenise(tokenizer, texts))  # type: ignore[operator]

    def get_input(self, batch: dict[str, Any], key: str) -> tuple[Tensor, Tensor]:
        if "edited" in batch:
            latents, texts = batch["edited"], batch["edit"]["c_crossattn"]
        else:
            latents, texts = batch[key].permute(0, 3, 1, 2), batch["txt"]
        spread = self.posterior * torch.randn(latents.shape, generator=self.draws)
        return latents + spread, self.get_learned_conditioning(texts)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.stage.task.noised(x_start, noise, t)

    def apply_model(self, x: Tensor, t: Tensor, c: Tensor, **_: Any) -> Tensor:
        return self.own[0].predict(x, t, c)  # type: ignore[operator]

    def shared_step(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        x, c = self.get_input(batch, self.first_stage_key)
        assert self.retained is not None
        noise, timesteps = self.retained
        return self.losses.p_losses(self, x, c, timesteps, noise)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Compvis:
        return self  # nothing of the micro models behaves otherwise in training


class Renamed(nn.Module):
    """The denoiser, its parameters named as CompVis names those that its scopes look for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.own = [model]

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        for name, parameter in self.own[0].unet.named_parameters():  # type: ignore[union-attr]
            renamed = name.replace("conv_norm_out.", "out.0.").replace("conv_out.", "out.2.")
            yield renamed.replace("time_embedding.", "time_embed."), parameter


def conditional_model(file: Path, model: nn.Module, drops: bool) -> type[nn.Module]:
    """``Conditional_Model`` of the DDPM code around a denoiser of classes: its forward passes, our network.

    Args:
        drops: whether it drops a tenth of the conditions in training, as released.
    """
    theirs = borrowed(file, "forward", "_forward_with_cond_scale", "prob_mask_like", torch=torch)
    found = _conditional_forward(file)

    class Conditional(nn.Module):
        forward, _forward_with_cond_scale = found

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.net = model

        def _forward(self, x: Tensor, t: Tensor, c: Tensor, cond_drop_prob: float | None = None) -> Tensor:
            share = 0.1 if cond_drop_prob is None else cond_drop_prob
            if share < 1 and not drops:
                share = 0.0
            keep = theirs.prob_mask_like((len(x),), 1 - share, x.device)
            return self.net(x, t.long(), torch.where(keep, c, 10))  # type: ignore[no-any-return]

    return Conditional


def _conditional_forward(file: Path) -> tuple[Any, Any]:
    """The two methods of the class; the file has other classes with a ``forward``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (owner,) = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Conditional_Model"]
    names = ("forward", "_forward_with_cond_scale")
    body = [n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name in names]
    found = _run(list(body), file, None, {"torch": torch})
    return found[names[0]], found[names[1]]


def numbers(theirs: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """All elements in one row."""
    return torch.cat([t.detach().flatten().double() for t in theirs]).numpy()
