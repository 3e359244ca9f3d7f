"""How well what a model draws matches its prompts, by a pair of encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.errors import DataError
from expunge.evaluation import clip_pairs, statistics
from expunge.evaluation import gallery as galleries
from expunge.evaluation.clip_pairs import Clip
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.gallery import Gallery
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score


@metrics.register("clip_alignment")
@dataclass(frozen=True, kw_only=True)
class ClipAlignment(Metric):
    """The cosine between a drawn image and its prompt, in the common space of a CLIP pair.

    ``mean_i f(x_i)ᵀ g(c_i) / (‖f(x_i)‖ ‖g(c_i)‖)``, from −1 to 1, with ``f`` the image and ``g`` the text
    encoder, over the images of the prompts ``c_i`` that name a forgotten concept, or over all others. It is
    neither cut off at 0 nor scaled. Interval: a bootstrap (BCa) over images.

    Where the pair itself finds the prompt of less than 90 % of held-out real images among all prompts its
    cosines say nothing, and there is no value; ``details["retrieval"]`` has its share and ``details["real"]``
    the mean cosine of real images.

    Args:
        part: ``forget``, prompts with a forgotten concept; ``retain``, all others.
        gallery: how the images are drawn.
        clip: the pair.

    Ideal: the retrained model's value.
    Cost: as unlearning_accuracy, whose images it shares; training the pair once.
    Differs: CLIPScore is 2.5 max(0, cosine), often given times 100, by OpenAI's CLIP. Our small pair knows
        this data alone: its values compare with no others.
    References: Hessel et al., CLIPScore, EMNLP 2021, arXiv:2104.08718; Radford et al., ICML 2021,
        arXiv:2103.00020.
    """

    part: Literal["forget", "retain"] = "forget"
    gallery: Gallery = Gallery()
    clip: Clip = Clip()
    unit = "index"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "CLIP alignment", self.part, "-".join(self.gallery.words)

    def measure(self, evidence: Evidence) -> Score:
        goal, who = galleries.target(evidence), clip_pairs.pair(evidence, self.clip)
        who.check()
        drawn = galleries.pictures(evidence, self.gallery)
        key = ("clip features", self.gallery, self.clip)
        said = evidence.subject.once(key, lambda: who.look(drawn.images, evidence.session.engine))
        there = goal.among(drawn.cells)
        rows = (there if self.part == "forget" else ~there).nonzero()[:, 0]
        if not len(rows):
            raise DataError("no prompt of the training data is of the kind that is counted here.")
        asked = drawn.rows[rows]
        values = (said[rows] * who.prompts[asked]).sum(1).double()
        name, part, variant = self.labels(evidence)
        return Score(
            name=name,
            part=part,
            variant=variant,
            value=float(values.mean()),
            interval=statistics.mean(values.numpy()),
            n=len(values),
            target="retrained",
            unit="index",
            details={
                "retrieval": who.retrieval,
                "real": who.real,
                "forgotten": " and ".join(goal.names),
                "prompts": {
                    drawn.prompts.texts[k]: float(values[asked == k].mean()) for k in asked.unique().tolist()
                },
            },
            per_example=values,
        )
