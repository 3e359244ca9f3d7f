"""AdvUnlearn: concept erasure that is trained against the prompts that would undo it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from expunge import seeding
from expunge.data.arrays import Batch
from expunge.data.captions import EMPTY, CaptionedImages
from expunge.data.split import Split
from expunge.errors import ConfigError, DataError, Unsupported
from expunge.methods.base import GradientMethod, methods
from expunge.methods.conditions import conditional, nothing_for
from expunge.methods.scopes.modules import Modules
from expunge.tasks.base import Task, model_output
from expunge.tasks.diffusion import Diffusion
from expunge.training.denoisers import token_table
from expunge.training.engine import Engine
from expunge.training.loop import Pass
from expunge.training.optim import AdamW, Optim
from expunge.training.sampling import noise, sample
from expunge.training.scope import Scope
from expunge.training.session import Session
from expunge.training.step import Step


def encoded(model: nn.Module, input_ids: Tensor, prefix: Tensor) -> Tensor:
    """Hidden states of captions with ``prefix`` ``(N, k, D)`` after their first token, ``(N, T, D)``.

    What follows moves ``k`` places on; the last ``k`` tokens, which must be padding, fall out. The text
    encoder runs as it always does, with its own positions, mask and norm: its table's answer alone changes.
    """
    count = prefix.shape[1]
    if count == 0:
        return cast(Tensor, cast(Any, model).encode_text(input_ids))
    first = input_ids[:, :1]
    moved = torch.cat([first, first.expand(-1, count), input_ids[:, 1:-count]], 1)

    def replaced(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], prefix.to(output), output[:, 1 + count :]], 1)

    handle = token_table(model).register_forward_hook(replaced)
    try:
        return cast(Tensor, cast(Any, model).encode_text(moved))
    finally:
        handle.remove()


@dataclass(frozen=True)
class Attack:
    """One run: the original, and the prefix that was last found for each example, by id."""

    original: nn.Module
    task: Diffusion
    engine: Engine
    seed: int
    found: dict[int, Tensor] = field(default_factory=dict)

    def outputs(self, model: nn.Module, batch: Batch, prefix: Tensor) -> Tensor:
        """What the model predicts for the captions behind the prefix, ``(N, D)`` float32."""
        with self.engine.autocast():
            hidden = encoded(model, batch["input_ids"], prefix)
            said = cast(Any, model).predict(batch["noisy"], batch["timesteps"], hidden)
        return model_output(said).flatten(1).float()

    def said(self, batch: Batch) -> Tensor:
        """What the original predicts, ``(N, D)`` float32."""
        with self.engine.frozen(self.original) as model, self.engine.autocast():
            return self.task.outputs(model, batch).float()

    def random(self, batch: Batch, index: int, tokens: int) -> Tensor:
        """Embeddings of tokens drawn for each example, of the original's table, ``(N, k, D)``."""
        table = token_table(self.original).weight.detach()
        seeds = [seeding.derive(self.seed, "prefix", index, int(id_)) for id_ in batch["ids"].tolist()]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        rows = [torch.randint(len(table), (tokens,), generator=draw) for draw in draws]
        return table[torch.stack(rows).to(table.device)].float()

    def search(self, model: nn.Module, batch: Batch, start: Tensor, steps: int, lr: float) -> Tensor:
        """The prefix after so many steps of Adam from ``start`` towards what the original predicts."""
        prefix, wanted = start.clone().requires_grad_(True), self.said(batch)
        optimizer = torch.optim.Adam([prefix], lr=lr)
        for _ in range(steps):
            with torch.enable_grad():
                away = (self.outputs(model, batch, prefix) - wanted).square().mean(1).sum()
                (prefix.grad,) = torch.autograd.grad(away, [prefix])
            optimizer.step()
        return prefix.detach()


@methods.register("adv_unlearn")
@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(GradientMethod):
    """Turns the model away from a concept also where a prompt is searched for that brings it back.

    At each step a prefix ``δ`` of ``tokens`` embeddings is found for every caption ``c`` to forget, by
    Adam on ``‖f_θ(z_t, t, [δ; c]) − f_o(z_t, t, c)‖² / D``, and then a step taken on

    ``mean ‖f_θ(z_t, t, [δ; c]) − f_o(z_t, t, ∅) + η (f_o(z_t, t, c) − f_o(z_t, t, ∅))‖² / D
    + w mean_{i∈D_r} ‖f_θ(x_t, t, c_i) − f_o(x_t, t, c_i)‖² / D``

    with ``f`` the model's own prediction and ``z_t`` drawn by the model being edited from noise, under ``c``
    with guidance, down to a random one of the sampler's ``steps`` levels. The text encoder moves and the
    denoiser does not, so that the encoder can be put into other pipelines.

    Args:
        negative_guidance: ``η``.
        retain_weight: ``w``.
        tokens: of ``δ``, which stands between a caption's first token and the rest.
        attack_steps, attack_lr: of the search for ``δ``.
        every: search at each so many steps; an example keeps its ``δ`` in between.
        start: a search begins at the embeddings of ``random`` tokens, or at the example's ``latest`` ``δ``.
        warm_up: fraction of all steps that are taken without ``δ``.
        steps, guidance: of the sampler.
        captions: erase other captions of the examples than their own, by name: see ``esd``.
        scope: the text encoder.

    Shapes: text-to-image models on captions with room for ``tokens`` more. Unsupported for others.
    Cost: for each step ``steps`` forward passes on average for ``z_t``, ``attack_steps`` forward and backward
        passes, three of the original and two with a backward pass. One copy of the model.
    Guarantee: empirical.
    Differs: gradients of the search are of one step; in the authors' code, which never sets them to zero,
        each adds to all before it. The timestep is the level that ``z`` is at, not one of the interval above.
        The embeddings to begin with are the original's, not those of the encoder being trained. Prefixes are
        counted in tokens, there in words. The retain term is of noised images of the retain set; there the
        images are drawn from prompts of a list. One ``δ`` for each example, batches in place of one prompt,
        and Adam alone, without the variant that feeds it signs. The text encoder runs as it is; there its
        forward pass is written anew for one release of transformers.
    References: Zhang et al., Defensive Unlearning with Adversarial Training for Robust Concept Erasure in
        Diffusion Models, NeurIPS 2024, arXiv:2405.15234; 1,000 steps, of them 200 to warm up, learning rate
        1e-5, ``η`` 1, guidance 3, retain batches of 5, ``w`` 1 (0.3 for nudity), one token, 30 steps at
        1e-3 as in its code.
    """

    batch_size: int = 5
    optim: Optim = AdamW(lr=1e-5, weight_decay=0.0)
    scope: Scope = Modules(patterns=("text_encoder",))
    mode: Literal["train", "eval"] = "eval"
    negative_guidance: float = 1.0
    retain_weight: float = 1.0
    tokens: int = 1
    attack_steps: int = 30
    attack_lr: float = 1e-3
    every: int = 1
    start: Literal["random", "latest"] = "random"
    warm_up: float = 0.2
    steps: int = 50
    guidance: float = 3.0
    captions: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("negative_guidance", "retain_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)
        for name in ("tokens", "attack_steps", "every", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        for name in ("attack_lr", "guidance"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        if not 0 <= self.warm_up < 1:
            raise ConfigError(f"is a fraction of all steps in [0, 1), got {self.warm_up}.", "warm_up")

    def reads_inputs(self) -> tuple[str, ...]:
        return ("retain",)

    def check(self, split: Split, task: Task) -> None:
        super().check(split, task)
        conditional(split, task, "adv_unlearn")
        forget = split.forget
        if not isinstance(forget, CaptionedImages):
            raise Unsupported("adv_unlearn attacks captions, and there are none. Use esd or sa for classes.")
        rows = forget.column(f"{self.captions}.input_ids" if self.captions else "input_ids")
        ended = (rows == forget.tokenizer.eos_token_id)[:, : max(0, rows.shape[1] - self.tokens)].any(1)
        if not ended.all():
            row = int((~ended).nonzero()[0])
            raise DataError(
                f"the caption of example {int(forget.ids[row])} leaves no room for {self.tokens} more "
                f"tokens, of {rows.shape[1]}. Lower tokens, or shorten the captions."
            )

    def passes(self, epoch: int) -> Sequence[Pass]:
        return (Pass("forget", beside="retain"),)

    def setup(self, model: nn.Module, split: Split, task: Task, session: Session) -> Attack:
        token_table(model)
        denoising, seed = conditional(split, task, "adv_unlearn"), session.child("adv_unlearn").seed
        return Attack(session.engine.placed(model), denoising, session.engine, seed)

    def objective(self, step: Step) -> dict[str, Tensor]:
        attack: Attack = step.state
        batch = step.forget.batch
        if self.captions:
            batch = attack.task.instead(batch, self.captions)
        batch = self.drawn(step.model, batch, attack, step.index)
        prefix = self.prefix(step, batch, attack)
        told, free = attack.said(batch), attack.said(attack.task.instead(batch, EMPTY))
        target = free - self.negative_guidance * (told - free)
        away = (attack.outputs(step.model, batch, prefix) - target).square().mean()
        return {"forget": away, "retain": self.retain_weight * step.retain.drift.mean()}

    def drawn(self, model: nn.Module, batch: Batch, attack: Attack, index: int) -> Batch:
        """The batch at a level of noise of step ``index``, as the model itself draws it."""
        turn, place = divmod(index, self.steps)
        levels = torch.randperm(self.steps, generator=seeding.generator(attack.seed, "levels", turn))
        seeds = [seeding.derive(attack.seed, "noise", index, int(id_)) for id_ in batch["ids"].tolist()]
        reached = sample(
            model,
            attack.task,
            batch["input_ids"],
            empty=nothing_for(attack.task, batch),
            steps=self.steps,
            guidance=self.guidance,
            start=noise(batch["inputs"].shape[1:], seeds),
            until=int(levels[place]),
            engine=attack.engine,
        )
        return {**batch, "noisy": reached.latents.to(batch["inputs"]), "timesteps": reached.timesteps}

    def prefix(self, step: Step, batch: Batch, attack: Attack) -> Tensor:
        """``δ`` of the batch, ``(N, k, D)``; of no tokens in the warm-up."""
        width = token_table(attack.original).weight.shape[1]
        if step.index < self.warm_up * step.total:
            return torch.zeros(len(batch["ids"]), 0, width, device=batch["noisy"].device)
        ids = batch["ids"].tolist()
        known = all(id_ in attack.found for id_ in ids)
        begun = torch.stack([attack.found[id_] for id_ in ids]) if known else None
        if begun is not None and step.index % self.every:
            return begun
        if begun is None or self.start == "random":
            begun = attack.random(batch, step.index, self.tokens)
        found = attack.search(step.model, batch, begun, self.attack_steps, self.attack_lr)
        attack.found.update(zip(ids, found, strict=True))
        return found
