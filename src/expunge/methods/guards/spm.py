"""SPM: semi-permeable membranes, which open as far as a caption is near the concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from expunge import seeding
from expunge.data.arrays import Batch
from expunge.data.captions import EMPTY, CaptionedImages, tokenise
from expunge.data.split import Split
from expunge.errors import ConfigError, Unsupported
from expunge.methods.anchors import concept_terms
from expunge.methods.base import methods
from expunge.methods.caption_guards import Beside, CaptionGuard, given_tokens, text_encoder_of
from expunge.methods.conditions import condition_of, conditional, nothing_for
from expunge.methods.guarded import GUARD
from expunge.methods.membranes import MEMBRANE, Membranes, adapted_layers, drawn_states, through
from expunge.methods.scopes.modules import Modules
from expunge.tasks.base import Task, model_output
from expunge.tasks.diffusion import Diffusion
from expunge.training.engine import Engine
from expunge.training.loop import Pass, Plan, optimise
from expunge.training.optim import AdamW, Optim
from expunge.training.sampling import noise, sample
from expunge.training.session import Session
from expunge.training.step import Step

REMEMBERED = 1024
"""Captions, besides those of the latest call, whose openings are known when the denoiser is asked."""

NEAR = 0.01
"""How far apart, as a share of their length, two copies of a state may be: what rounding to 16 bits does."""


class Transported(Beside):
    """Membranes with an opening for each caption.

    The text encoder tells the openings of the captions that it reads, and the denoiser finds them again by
    the states that it is given: of each caption the last one, which all its tokens went into.
    """

    def __init__(self, method: Any, learned: Mapping[str, Tensor]) -> None:
        super().__init__(method, learned)
        self.keys, self.openings = torch.empty(0, 0), torch.empty(0)
        self.opening = torch.empty(0)

    def opened(self, text_encoder: nn.Module) -> None:
        text_encoder.register_forward_hook(self.read, with_kwargs=True)

    def around(self, model: nn.Module) -> None:
        """Registers the hooks in the denoiser; none does anything while nothing has been learnt."""
        for name, layer in adapted_layers(model).items():
            layer.register_forward_hook(partial(self.beside, name.replace(".", "/")))
        cast(Any, model).unet.register_forward_pre_hook(self.ask, with_kwargs=True)

    def read(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """After the text encoder's forward pass."""
        if not self.learned():
            return
        states = output[0].detach().float()
        found, keys = self.open(given_tokens(arguments, named), states), states[:, -1]
        if len(self.keys):
            keys = torch.cat([keys, self.keys[:REMEMBERED].to(keys.device)])
            found = torch.cat([found, self.openings[:REMEMBERED].to(found.device)])
        self.keys, self.openings = keys, found

    def open(self, ids: Tensor, states: Tensor) -> Tensor:
        """The opening for captions ``(N, T)`` with the states ``(N, T, D)``: ``(N,)`` in [0, 1]."""
        concept, end = self.get_buffer("concept"), self.get_buffer("end")
        shared = (ids[:, :, None] == concept).any(1).float().mean(1)
        compared = summary(states, ids, end, cast(SPM, self.method).transport) - self.get_buffer("empty")
        alike = cosine_similarity(compared, self.get_buffer("direction")[None], dim=1)
        return torch.maximum(alike.clamp(min=0), shared)

    def ask(self, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before the denoiser's forward pass.

        Raises:
            Unsupported: states that the text encoder did not give.
        """
        if not self.learned():
            return
        states = named["encoder_hidden_states"] if "encoder_hidden_states" in named else arguments[2]
        if cast(SPM, self.method).transport == "off":
            self.opening = torch.ones(len(states), device=states.device)
            return
        keys = states[:, -1].detach().float()
        far = torch.full((len(keys), 1), torch.inf).to(keys)
        if len(self.keys):
            exact = "donot_use_mm_for_euclid_dist"
            far = torch.cdist(keys, self.keys.to(keys.device), compute_mode=exact)
        least = far.min(1)
        if bool((least.values > NEAR * keys.norm(dim=1)).any()):
            raise Unsupported(
                "spm opens as far as a caption says, and the denoiser was given states that the model's text "
                "encoder did not make. Give captions, or use transport=off, which is always open."
            )
        self.opening = self.openings.to(keys.device)[least.indices]

    def beside(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Any:
        """After the forward pass of a layer: ``W x + m s B A x``."""
        down = self._buffers.get(f"down/{name}")
        if down is None:
            return None
        method, up = cast(SPM, self.method), self.get_buffer(f"up/{name}")
        strength = self.opening**2 if method.transport == "reference" else self.opening
        found = method.alpha / method.rank * through(layer, inputs[0], down, up)
        return output + (strength.view(-1, *[1] * (found.ndim - 1)) * found).to(output.dtype)


def summary(states: Tensor, ids: Tensor, end: Tensor, transport: str) -> Tensor:
    """What two captions are compared by, of states ``(N, T, D)``: see ``SPM``; rows, float32."""
    if transport == "reference":
        return states.float().flatten(1)
    is_end = ids == end
    place = torch.where(is_end.any(1), is_end.long().argmax(1), ids.shape[1] - 1)
    return states.float()[torch.arange(len(ids), device=ids.device), place]


@dataclass(frozen=True)
class Erasure:
    """One run: the original, and how far the model under membranes draws."""

    original: nn.Module
    task: Diffusion
    engine: Engine
    seed: int
    method: SPM

    def drawn(self, model: nn.Module, batch: Batch, index: int) -> Batch:
        """The batch at a level of noise of step ``index``, as the model itself draws it."""
        turn, place = divmod(index, self.method.steps)
        order = torch.randperm(self.method.steps, generator=seeding.generator(self.seed, "levels", turn))
        reached = sample(
            model,
            self.task,
            condition_of(batch),
            empty=nothing_for(self.task, batch),
            steps=self.method.steps,
            guidance=self.method.guidance,
            start=noise(batch["inputs"].shape[1:], self.seeds("noise", batch, index)),
            until=int(order[place]),
            engine=self.engine,
        )
        return {**batch, "noisy": reached.latents.to(batch["inputs"]), "timesteps": reached.timesteps}

    def seeds(self, what: str, batch: Batch, index: int) -> list[int]:
        """One for each example, of the run's seed, the step and the example's id alone."""
        return [seeding.derive(self.seed, what, index, int(id_)) for id_ in batch["ids"].tolist()]

    def target(self, batch: Batch) -> Tensor:
        """``f_o(∅) − η (f_o(c) − f_o(∅))``, ``(N, D)``."""
        with self.engine.frozen(self.original) as model, self.engine.autocast():
            told = self.task.outputs(model, batch).float()
            free = self.task.outputs(model, self.task.instead(batch, EMPTY)).float()
        return free - self.method.negative_guidance * (told - free)

    def anchoring(self, model: nn.Module, batch: Batch, index: int) -> Tensor:
        """How far the answers to states that mean nothing are from the original's, a scalar."""
        encode, count = cast(Any, self.original).encode_text, self.method.anchors
        with self.engine.frozen(self.original) as original, self.engine.autocast():
            like = encode(batch["input_ids"]).float().repeat_interleave(count, 0)
            seeds = [seeding.derive(s, i) for s in self.seeds("anchor", batch, index) for i in range(count)]
            states = drawn_states(like, seeds)
            asked = [batch[name].repeat_interleave(count, 0) for name in ("noisy", "timesteps")]
            wanted = model_output(cast(Any, original).predict(*asked, states)).float()
        with self.engine.autocast():
            said = model_output(cast(Any, model).predict(*asked, states)).float()
        return (said - wanted).square().mean()

    def objective(self, step: Step) -> dict[str, Tensor]:
        """The two terms."""
        batch = step.forget.batch
        if self.method.captions:
            batch = self.task.instead(batch, self.method.captions)
        batch = self.drawn(step.model, batch, step.index)
        with self.engine.autocast():
            said = self.task.outputs(step.model, batch).float()
        terms = {"forget": (said - self.target(batch)).square().mean()}
        if self.method.anchoring > 0:
            terms["retain"] = self.method.anchoring * self.anchoring(step.model, batch, step.index)
        return terms


@methods.register("spm")
@dataclass(frozen=True, kw_only=True)
class SPM(CaptionGuard):
    """Trains low-rank membranes that turn a concept away, and opens them as far as a caption is near it.

    Beside every linear and convolutional layer ``W`` of the denoiser's transformers stand ``A`` and ``B`` of
    rank 1, ``W x + m s B A x`` with ``s = alpha / rank``. They are trained open, ``m = 1``, by

    ``mean ‖f_Δ(z_t, t, c) − f_o(z_t, t, ∅) + η (f_o(z_t, t, c) − f_o(z_t, t, ∅))‖² / D
    + λ mean ‖f_Δ(z_t, t, c̃) − f_o(z_t, t, c̃)‖² / D``

    with ``f_o`` the original, which is the model with the membranes shut, ``c`` the captions to forget and
    ``z_t`` drawn by the model being trained, under ``c`` with guidance, down to a random one of the sampler's
    levels. ``c̃`` are normal numbers in the place of a caption's states, of 0.8 to 1.2 times the length of
    those of ``c``, and taken with probability ``1 − cos(c, c̃)``. At inference every caption has its own

    ``m = max(cos(e(c) − e(∅), e(k) − e(∅)), share of the tokens of k that are in c)``

    with ``k`` the concept's words alone and ``e`` the state at the end of the text: facilitated transport.

    Args:
        rank, alpha: of the membranes.
        negative_guidance: ``η``.
        anchoring: ``λ``.
        anchors: ``c̃`` for each example.
        transport: ``end`` as above; ``reference`` is the authors' code: the cosine of all states of the two
            captions, those of start and padding included and none taken away, and ``m²`` in the place of
            ``m``; ``off`` is ``m = 1`` for every caption.
        captions: erase other captions of the examples than their own, by name: ``style`` or ``object``.
        concept: its words, where the captions do not tell; of a pair both are ``k``.
        epochs, batch_size, optim: passes over the forget examples, whose captions are the prompts; the
            authors take 3,000 steps of one prompt.
        steps, guidance: of the sampler.

    Shapes: text-to-image models with captioned images, whose denoiser has transformers of diffusers.
        Unsupported for others.
    Cost: for each step ``steps`` forward passes on average, ``2 + anchors`` of the original, ``1 + anchors``
        forward and backward. At inference two thin products beside each adapted layer. Stored: ``rank (D_in
        + D_out)`` numbers for each of these.
    Guarantee: empirical; the weights are the original's, and know all that they knew.
    Differs: ``transport``. The authors scale both factors by ``m``, so that membranes open by its square; and
        states of start and padding, which captions have in common, keep them partly open for every caption,
        the empty one included. There the prompt's ``m`` also holds for the empty or negative prompt it is
        guided from, here each has its own. The timestep is the level that ``z`` is at, pure noise included;
        their code tells the model up to 42 steps of 1,000 more noise than there is. The concept's words are
        found in the captions; there the bare name is both prompt and ``k``. AdamW in full precision with one
        cosine; there in 8 bits with three. Batches of 4 with one anchor each; there one with 4, of which the
        loss sees two, and the empty prompt in the place of the others. The results
        of UnlearnCanvas for this method are with a negative prompt and another guidance than all others'.
    References: Lyu et al., One-Dimensional Adapter to Rule Them All, CVPR 2024, arXiv:2312.16145; rank 1,
        alpha 1, ``λ`` 1,000, ``η`` 1, learning rate 1e-4, 30 steps and guidance 3 as in their code.
    """

    rank: int = 1
    alpha: float = 1.0
    negative_guidance: float = 1.0
    anchoring: float = 1000.0
    anchors: int = 1
    transport: Literal["end", "reference", "off"] = "end"
    captions: str = ""
    concept: str = ""
    epochs: int = 5
    batch_size: int = 4
    optim: Optim = AdamW(lr=1e-4, weight_decay=0.01, schedule="cosine", warmup=1 / 6)
    steps: int = 30
    guidance: float = 3.0

    beside = Transported

    def __post_init__(self) -> None:
        for name in ("rank", "anchors", "epochs", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, got {getattr(self, name)}.", name)
        for name in ("alpha", "guidance"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"must be above 0, got {getattr(self, name)}.", name)
        for name in ("negative_guidance", "anchoring"):
            if getattr(self, name) < 0:
                raise ConfigError(f"must not be negative, got {getattr(self, name)}.", name)

    def attach(self, model: nn.Module, learned: Mapping[str, Tensor]) -> nn.Module:
        adapted_layers(model)
        guarded = super().attach(model, learned)
        cast(Transported, getattr(guarded, GUARD)).around(guarded)
        return guarded

    def learn(self, model: nn.Module, split: Split, task: Task, session: Session) -> dict[str, Tensor]:
        text_encoder_of(model, "spm")
        denoising = conditional(split, task.unlearning(), "spm")
        near = self.compared(model, split, session)
        adapted = session.engine.copy(model)
        Membranes(adapted, self.rank, self.alpha / self.rank, session.generator("membranes"))
        original = session.engine.placed(model)
        run = Erasure(original, denoising, session.engine, session.child("spm").seed, self)
        plan = Plan(
            what="spm",
            objective=run.objective,
            parts={"forget": split.forget},
            passes=lambda epoch: (Pass("forget"),),
            epochs=self.epochs,
            batch_size=self.batch_size,
            optim=self.optim,
            scope=Modules(patterns=(MEMBRANE,)),
            mode="eval",
        )
        found = optimise(adapted, plan, denoising, session)
        return {**cast(Membranes, getattr(found, MEMBRANE)).factors(), **near}

    def compared(self, model: nn.Module, split: Split, session: Session) -> dict[str, Tensor]:
        """What a caption is compared with: the concept's tokens, and the direction of its state."""
        tokenizer: Any = cast(CaptionedImages, split.forget).tokenizer
        words = " ".join(concept_terms(split, self.concept))
        ids, end = tokenise(tokenizer, [words, ""]), torch.tensor(tokenizer.eos_token_id)
        with session.engine.frozen(model):
            states = cast(Any, model).encode_text(ids.to(session.engine.torch_device)).float().cpu()
        own, empty = summary(states, ids, end, self.transport)
        if self.transport == "reference":
            empty = torch.zeros_like(empty)
        concept = torch.tensor(tokenizer(words, add_special_tokens=False)["input_ids"]).unique()
        return {"concept": concept, "end": end, "empty": empty, "direction": own - empty}
