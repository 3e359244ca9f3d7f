"""Records from JSON lines: questions with answers, prompts, chats and documents."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.data.text import Record
from expunge.errors import DataError

FORMS = {
    "question": ("question", "answer"),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
"""The fields that a record is made of; the first one says which form it has."""

ROLES = ("system", "user", "assistant")


def read_records(path: Path) -> list[Record]:
    """The records of a file with one JSON object a line (``.gz`` is unpacked); empty lines are passed over.

    A record is one of

    - ``{"question": …, "answer": …}`` or ``{"prompt": …, "completion": …}``,
    - ``{"messages": [{"role": "user", "content": …}, …, {"role": "assistant", "content": …}]}``: the last
      turn is learnt,
    - ``{"text": …}``: a document,

    and may have ``subject``; other answers: ``idk``, ``alternate``, ``paraphrased_answer``,
    ``perturbed_answer`` (a list), or ``answers`` ``{name: text}``; and ``paraphrased_question``. Other
    fields are not used.

    Raises:
        DataError: the file cannot be read; a line that is no JSON object, a field that is missing, empty or
            of the wrong type, or other answers than the first record has: with file, line and field.
    """
    found: list[Record] = []
    for line, fields in objects(path):
        where = f"'{path}', line {line}"
        found.append(_record(fields, where))
        mine, first = (sorted((*one.answers, *one.questions)) for one in (found[-1], found[0]))
        if mine != first:
            raise DataError(
                f"{where} has the other answers and questions {mine}, the first record has {first}. Give all "
                "records the same."
            )
    if not found:
        raise DataError(f"'{path}' holds no records. Write one JSON object a line.")
    return found


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every line's number, from 1, and its JSON object.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or a line is no JSON object.
    """
    for line, text in lines(path):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"'{path}', line {line} is not JSON: {error.msg} at column {error.colno}. Write one JSON "
                "object a line."
            ) from None
        if not isinstance(value, dict):
            raise DataError(
                f"'{path}', line {line} is {_kind(value)}, not a JSON object. Write one JSON object a line."
            )
        yield line, value


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not empty, each with its number from 1.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        contents = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = contents.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError):
        raise DataError(f"'{path}' is no gzip file, or damaged. Copy it again, or unpack it.") from None
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        line = contents[: error.start].count(b"\n") + 1
        raise DataError(f"'{path}', line {line} is not UTF-8. Save the file as UTF-8.") from None
    for number, line_text in enumerate(text.split("\n"), 1):
        if line_text.strip():
            yield number, line_text.strip()


def _record(fields: Mapping[str, Any], where: str) -> Record:
    form = next((form for form in FORMS if form in fields), None)
    if form is None:
        raise DataError(
            f"{where} has none of the fields question, prompt, messages and text, but {sorted(fields)}. Add "
            "question and answer, or text."
        )
    earlier: tuple[tuple[str, str], ...] = ()
    question: str | None = None
    if form == "messages":
        earlier, question, answer = _chat(fields["messages"], where)
    elif form == "text":
        answer = _text(fields, "text", where)
    else:
        question, answer = (_text(fields, name, where) for name in FORMS[form])
    subject = fields.get("subject")
    if subject is not None and (isinstance(subject, bool) or not isinstance(subject, str | int)):
        raise DataError(f"{where}: field 'subject' is {_kind(subject)}. Give a name or a number.")
    answers = _answers(fields, where)
    asked = "paraphrased_question"
    questions = {asked: _text(fields, asked, where)} if asked in fields else {}
    if question is None and (answers or questions):
        raise DataError(
            f"{where}: a document has no question, so it cannot have {sorted((*answers, *questions))}. "
            "Remove these fields."
        )
    return Record(
        answer=answer,
        question=question,
        earlier=earlier,
        subject=None if subject is None else str(subject),
        answers=answers,
        questions=questions,
    )


def _answers(fields: Mapping[str, Any], where: str) -> dict[str, str]:
    given = fields.get("answers", {})
    if not isinstance(given, dict):
        raise DataError(f"{where}: field 'answers' is {_kind(given)}. Give an object of names and texts.")
    found = {name: _text(given, name, where, "answers.") for name in given}
    for field, name in (("idk", "idk"), ("alternate", "alternate"), ("paraphrased_answer", "paraphrased")):
        if field in fields:
            found[name] = _text(fields, field, where)
    perturbed = fields.get("perturbed_answer", [])
    if not isinstance(perturbed, list):
        raise DataError(f"{where}: field 'perturbed_answer' is {_kind(perturbed)}. Give a list of texts.")
    for number, text in enumerate(perturbed, 1):
        found[f"perturbed_{number}"] = _text({str(number): text}, str(number), where, "perturbed_answer.")
    return found


def _chat(messages: Any, where: str) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """The turns before the question, the question, and the answer."""
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{where}: field 'messages' needs a list of two turns or more.")
    turns: list[tuple[str, str]] = []
    for place, turn in enumerate(messages):
        if not isinstance(turn, dict):
            raise DataError(
                f"{where}: field 'messages.{place}' is {_kind(turn)}. Give an object with role and content."
            )
        role = turn.get("role")
        if role not in ROLES:
            raise DataError(
                f"{where}: field 'messages.{place}.role' is {role!r}. Use system, user or assistant."
            )
        turns.append((str(role), _text(turn, "content", where, f"messages.{place}.")))
    if [role for role, _ in turns[-2:]] != ["user", "assistant"]:
        raise DataError(
            f"{where}: field 'messages' ends with the roles {[role for role, _ in turns[-2:]]}. End with a "
            "turn of the user and the assistant's answer to it: that is what is learnt."
        )
    return tuple(turns[:-2]), turns[-2][1], turns[-1][1]


def _text(fields: Mapping[str, Any], name: str, where: str, parent: str = "") -> str:
    value = fields.get(name)
    if name not in fields:
        raise DataError(f"{where}: field '{parent}{name}' is missing. Add it.")
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{parent}{name}' is {_kind(value)}, not a text. Put it in quotes.")
    if not value.strip():
        raise DataError(f"{where}: field '{parent}{name}' is empty. Remove the record, or fill it in.")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
