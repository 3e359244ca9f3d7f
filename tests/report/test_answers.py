"""Answers before and after, in the page and in the file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.report import synthetic
from tests.report.test_report import Page

from expunge.data.arrays import ArrayData
from expunge.data.split import Split
from expunge.data.text import Record, TextData
from expunge.data.tokenizers import train_tokenizer
from expunge.evaluation.breakdown import answers
from expunge.evaluation.evaluate import Candidate, Evaluation
from expunge.evaluation.report import Report
from expunge.evaluation.table import Table
from expunge.report import breakdown, html
from expunge.tasks import CausalLM
from expunge.training.networks import LanguageModel
from expunge.training.session import Session

QUESTIONS = ("Where does <Ada> live?", "Who is Bo?")


def told(name: str) -> list[dict[str, object]]:
    return [
        {"id": 7 + i, "question": asked, "truth": f"truth {i}", "written": "" if i else f"{name} & says"}
        for i, asked in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def table() -> Table:
    """Every model answers but the one that failed; there are no numbers, which would be drawn."""
    made = synthetic.table(methods={"salun": synthetic.METHODS["salun"]})
    empty: dict[str, Any] = {"scores": {}, "histograms": {}, "classes": [], "worst": []}
    rows = [replace(row, **empty, answers=[] if row.error else told(row.name)) for row in made.rows]
    return replace(made, rows=tuple(rows))


def test_original_first_retrained_and_unlearned_answer_each_question(table) -> None:
    first, second = breakdown.answers(table)
    assert (first.text, first.truth) == (QUESTIONS[0], "truth 0")
    assert [(one.name, one.role) for one in first.answers] == [
        ("original", "original"), ("retrained 1", "retrained"), ("salun", "unlearned"),
    ]  # fmt: skip
    assert first.answers[2].text == "salun & says"
    assert {one.text for one in second.answers} == {""}


def test_the_page_shows_them_escaped_and_says_where_nothing_was_written(table) -> None:
    page = html.render(Report("r", (table,), {}))
    seen = Page(page.replace("<dt", " <dt").replace("<dd", " <dd")).text
    assert "<Ada>" not in page
    assert "Answers before and after" in seen
    assert "Where does <Ada> live? true answer truth 0 original original & says" in seen
    assert "Who is Bo? true answer truth 1 original nothing retrained 1 nothing salun nothing" in seen
    for tag in ("div", "dl", "dt", "dd", "p"):
        assert page.count(f"<{tag}>") + page.count(f"<{tag} ") == page.count(f"</{tag}>"), tag


def test_a_table_without_answers_has_no_such_section(table) -> None:
    silent = replace(table, rows=tuple(replace(row, answers=[]) for row in table.rows))
    assert "Answers before and after" not in html.render(Report("r", (silent,), {}))


def test_they_survive_the_file_and_older_files_have_none(table) -> None:
    written = table.to_json()
    assert [row.answers for row in Table.from_json(written).rows] == [row.answers for row in table.rows]
    for row in written["rows"]:
        del row["answers"]
    assert not any(row.answers for row in Table.from_json(written).rows)


def test_a_long_answer_is_cut_on_the_page_alone(table) -> None:
    long = [{**told("x")[0], "written": "word " * 1000}]
    rows = [replace(row, answers=long) for row in table.rows]
    (asked,) = breakdown.answers(replace(table, rows=tuple(rows)))
    assert len(asked.answers[0].text) <= breakdown.LETTERS + 2
    assert asked.answers[0].text.endswith("word …")


def test_models_are_asked_a_few_questions_evenly_spaced_and_documents_nothing() -> None:
    pytest.importorskip("transformers")
    questions = [Record(question=f"Who is {i}?", answer=f"Person {i}.") for i in range(20)]
    tokenizer = train_tokenizer(f"Question: {one.question}\nAnswer: {one.answer}" for one in questions)
    torch.manual_seed(0)
    model = LanguageModel(len(tokenizer), 8, 1, 1, 80)

    def asked(records: list[Record]) -> list[dict[str, object]]:
        data = TextData(records, tokenizer)
        split, task = Split(data, data), CausalLM(len(tokenizer))
        found = Evaluation([Candidate("original", "original", model)], split, task, Session(seed=0))
        evidence = found.evidence(found.candidates[0])
        few = answers(evidence)
        if few:
            every = evidence.subject.answers("forget")
            assert [one["written"] for one in few] == [every[one["id"]][0] for one in few]
            assert answers(evidence) == few  # now of those that are written already
        return few

    few = asked(questions)
    assert [one["id"] for one in few] == [0, 4, 8, 11, 15, 19]
    assert (few[1]["question"], few[1]["truth"]) == ("Who is 4?", "Person 4.")
    assert asked([Record(answer="Person 1 is who.")]) == []


def test_tokens_without_text_have_no_answers() -> None:
    ids = torch.arange(12).view(3, 4)
    data, task = ArrayData({"input_ids": ids, "labels": ids}), CausalLM(12)
    candidate = Candidate("original", "original", LanguageModel(12, 8, 1, 1, 80))
    found = Evaluation([candidate], Split(data, data), task, Session(seed=0))
    assert answers(found.evidence(candidate)) == []
