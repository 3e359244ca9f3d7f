"""What a language model says of each part: how likely, how alike, how much by heart, how fluently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.data.text import plain
from expunge.evaluation import language, text, tofu
from expunge.evaluation.evidence import Evidence
from expunge.evaluation.generation import Decoding
from expunge.evaluation.metric import Metric, metrics
from expunge.evaluation.score import Score, Unit
from expunge.evaluation.text import Bools, Definition, Kind


@metrics.register("answer_probability")
@dataclass(frozen=True, kw_only=True)
class AnswerProbability(Metric):
    """How likely the answers of a part are, each normalised by its length (TOFU's probability).

    ``mean_i p(a_i | q_i)^(1/|a_i|)``, the geometric mean of the probabilities of an answer's tokens, the end
    of text among them. Interval: bootstrap over examples, or over data subjects.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe.
        answer: of another answer (or to another question) that the records bring: ``paraphrased``,
            ``alternate``, ``idk``; the answer itself where empty.

    Ideal: the retrained model's value, 0.15 for TOFU's authors and a Llama-2-7B, not 0.
    Cost: nothing beyond the forward pass, one for each answer.
    References: Maini et al., TOFU, COLM 2024, arXiv:2401.06121.
    """

    part: str = "forget"
    answer: str = ""

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return "answer probability", self.part, self.answer

    def measure(self, evidence: Evidence) -> Score:
        language.tokens(evidence, self.part)
        found = language.likelihood(evidence.subject, self.part, self.answer)
        return language.averaged(self, evidence, tofu.probability(found))


@metrics.register("rouge")
@dataclass(frozen=True, kw_only=True)
class Rouge(Metric):
    """How many words of the true answers the model writes when it is asked.

    The mean ROUGE over the questions of a part: the longest common subsequence of words (or, ``rouge1``, the
    words in any order) over those of the reference (recall), of the answer (precision), or both (F1). With
    several samples the mean over them. Interval: over examples, or over data subjects.

    - TOFU: ``recall`` with the stemmer, ``max_tokens`` 200. Recall rewards long answers: look at F1 too.
    - MUSE, verbatim memory: the part holds beginnings of documents as questions and how each goes on as its
      answer, with a template that adds nothing (``prompt="{question}"``, ``answer="{answer}"``; the probe
      ``verbatim`` of the ``muse`` data). Then ``read: f1, stemmer: false, cut: true`` and ``max_tokens`` 128.
    - MUSE, knowledge: F1 on the probes ``knowledge_forget`` and ``knowledge_retain``.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe.
        read: ``recall``, ``f1`` or ``precision``.
        stemmer: whether words lose their endings first (Porter).
        cut: whether references end where answers must: after ``max_tokens`` tokens.
        decoding: how answers are written.

    Ideal: the retrained model's value (0.41 recall for TOFU's authors and a Llama-2-7B), not 0.
    Cost: writing the answers, once for all metrics that decode alike; 10,000 pairs a second.
    Differs: MUSE's 128 tokens of the reference hold the token that begins a text; here it does not count.
    References: Lin, ROUGE, 2004; Maini et al., TOFU, COLM 2024, arXiv:2401.06121; Shi et al., MUSE, 2024,
        arXiv:2407.06460.
    """

    part: str = "forget"
    variant: Kind = "rougeL"
    read: Literal["recall", "f1", "precision"] = "recall"
    stemmer: bool = True
    cut: bool = False
    decoding: Decoding = Decoding()

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words: list[str] = [self.variant, self.read]
        words += ["unstemmed"] * (not self.stemmer) + ["cut"] * self.cut
        return "ROUGE", self.part, "-".join(words + language.decoded(self.decoding))

    def measure(self, evidence: Evidence) -> Score:
        truth = [record.answer for record in language.questions(evidence, self.part)]
        if self.cut:
            tokenizer, most = language.text(evidence, self.part).tokenizer, self.decoding.max_tokens
            truth = [tokenizer.decode(plain(tokenizer, answer)[:most]) for answer in truth]
        written = evidence.subject.answers(self.part, self.decoding)
        said = [answer for samples in written for answer in samples]
        repeated = [truth[i] for i, samples in enumerate(written) for _ in samples]
        found = text.rouge(said, repeated, self.variant, self.stemmer)
        values = {"recall": found.recall, "f1": found.f1, "precision": found.precision}[self.read]
        return language.averaged(self, evidence, language.over_samples(written, values))


class _Memorised(Metric):
    """What is read off which answer tokens are the model's first choice under teacher forcing."""

    part: str
    definition: Definition

    def _labels(self, name: str) -> tuple[str, str, str]:
        return name, self.part, "tokens-conformance" if self.definition == "conformance" else ""

    def _hits(self, evidence: Evidence) -> tuple[Bools, Bools]:
        """Whether each token is the first choice and which ones count, both ``(N, T)``."""
        data = language.tokens(evidence, self.part)
        values, counted = language.token_values(evidence.subject, self.part)
        if self.definition == "corrected":
            counted = language.without_end(data, counted)
        return values["right"] == 1, counted


@metrics.register("extraction_strength")
@dataclass(frozen=True, kw_only=True)
class ExtractionStrength(_Memorised):
    """The share of an answer that the model completes by itself once it has read the rest.

    ``mean_i (1 − k_i/T_i)`` with ``k`` the fewest tokens after which all others of the ``T`` are the model's
    first choice. The token that ends a text is no part of it. Interval: over examples, or over data subjects.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe; questions or documents.
        definition: ``conformance`` has ``k ≤ T − 1``, so that an answer never scores below ``1/T``, and
            leaves the last label out whatever it is.

    Ideal: the retrained model's value (0.06 is published for TOFU and a Llama-3.2-1B), not 0.
    Cost: nothing beyond the forward pass.
    Differs: the published floor of ``1/T`` and the last token of texts that do not end, see ``definition``.
    References: Carlini et al., Extracting Training Data, USENIX Security 2021; Wang et al., Towards
        Effective Evaluations and Comparisons for LLM Unlearning Methods, ICLR 2025; code open-unlearning.
    """

    part: str = "forget"
    definition: Definition = "corrected"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return self._labels("extraction strength")

    def measure(self, evidence: Evidence) -> Score:
        right, counted = self._hits(evidence)
        values = text.extraction_strength(right, counted, self.definition, eos=False)
        return language.averaged(self, evidence, values)


@metrics.register("exact_memorisation")
@dataclass(frozen=True, kw_only=True)
class ExactMemorisation(_Memorised):
    """The share of an answer's tokens that are the model's first choice after the true ones before them.

    ``mean_i Σ_t right_it / T_i``. The token that ends a text is not counted. Interval: over examples, or over
    data subjects. ``accuracy`` is the same with that token.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe; questions or documents.
        definition: ``conformance`` leaves the last label out whatever it is.

    Ideal: the retrained model's value, which is far above 0 (0.59 is published for TOFU and a
        Llama-3.2-1B): many tokens follow from those before them.
    Cost: nothing beyond the forward pass.
    References: Tirumala et al., Memorization Without Overfitting, NeurIPS 2022; code open-unlearning.
    """

    part: str = "forget"
    definition: Definition = "corrected"

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        return self._labels("exact memorisation")

    def measure(self, evidence: Evidence) -> Score:
        right, counted = self._hits(evidence)
        values = text.exact_memorisation(right, counted, self.definition, eos=False)
        return language.averaged(self, evidence, values)


@metrics.register("fluency")
@dataclass(frozen=True, kw_only=True)
class Fluency(Metric):
    """Whether the model still writes sentences: the entropy of its answers' pairs and triples of words.

    ``mean_i ½ (⅔ H₂ + 4/3 H₃)`` in bits, with ``H_n`` the entropy of an answer's runs of ``n`` words: low for
    one that goes in circles, 0 for one of two words or none. It grows with length, so short right answers
    score low; only models that answer the same questions compare. ``repetition`` is the share of an answer's
    pairs of words that it has written before. Interval: over examples, or over data subjects.

    Args:
        part: ``forget``, ``retain``, ``test`` or a probe.
        read: ``entropy`` or ``repetition``.
        decoding: how answers are written.

    Ideal: the retrained model's value. A method that makes a model stutter on the forget set shows.
    Cost: writing the answers, once for all metrics that decode alike.
    Differs: words are split at punctuation and apostrophes, published code asks NLTK; tables have × 100.
    References: Meng et al., Locating and Editing Factual Associations in GPT, 2022, arXiv:2202.05262; Jin et
        al., RWKU, 2024, arXiv:2406.10890.
    """

    part: str = "forget"
    read: Literal["entropy", "repetition"] = "entropy"
    decoding: Decoding = Decoding()

    def labels(self, evidence: Evidence) -> tuple[str, str, str]:
        words = ["repetition"] * (self.read == "repetition") + language.decoded(self.decoding)
        return "fluency", self.part, "-".join(words)

    def counts(self) -> Unit:
        return "index" if self.read == "entropy" else "fraction"

    def measure(self, evidence: Evidence) -> Score:
        language.text(evidence, self.part)
        written = evidence.subject.answers(self.part, self.decoding)
        said = [answer for samples in written for answer in samples]
        values = text.fluency(said) if self.read == "entropy" else text.repetition(said)
        return language.averaged(self, evidence, language.over_samples(written, values))
