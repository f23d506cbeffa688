"""Typed questions to a server that answers each with a probability for every option: all attributes in one call.

Two forms are spoken. ``"decisions"`` is OpenAI's ``POST /v1/decisions``; ``"systemone"`` is the ``POST /v1/systemone``
of llama.cpp, SGLang and others. SGLang's own ``/v1/decisions`` is a third one, which reads text alone.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .._names import show
from .._schema import choice, mapping, number
from .completion import Completion, field_of, plain_count, plain_string
from .schema import SHOWS, UNKNOWN_ANSWER, Schema

Api = Literal["chat", "decisions", "systemone", "classifier"]
"""How a source is asked: for a text with JSON in it, by typed questions, or as a local network."""

PATHS: Mapping[str, str] = {"decisions": "/decisions", "systemone": "/systemone"}
MAX_OPTIONS = 255
_SLACK = 0.02  # how far rounded probabilities may sum to something else than 1
_PROBABILITIES = mapping(number(-1e-6, 1 + 1e-6), MAX_OPTIONS + 1)
_MAX_NAME = 200


class Question(NamedTuple):
    """A choice between options.

    Attributes:
        name: Of the field.
        text: What is asked.
        options: The values, and ``"unknown"``.
    """

    name: str
    text: str
    options: tuple[str, ...]


def questions_of(schema: Schema, modality: str) -> tuple[Question, ...]:
    """Return a question for each field that an image of this modality can show; free words cannot be asked for."""
    return tuple(
        Question(f.name, (f.question or f.name.replace("_", " ")).capitalize(), (*f.values, UNKNOWN_ANSWER))
        for f in schema.for_modality(modality)
        if f.values and len(f.values) < MAX_OPTIONS
    )


def statement_of(schema: Schema, modality: str) -> str:
    """Return what the questions are about, in words."""
    return (
        f"The image is {SHOWS.get(modality, f'an image of the kind {modality!r}')}. The questions are about the most "
        f"prominent {schema.object} in it and what the image itself shows. Where this kind of image cannot show it, or "
        f"it cannot be seen, the answer is {UNKNOWN_ANSWER!r}."
    )


def request_body(api: Api, model: str, statement: str, questions: Sequence[Question], image: str) -> dict[str, Any]:
    """Return the body of a call; `image` is a data URL."""
    if api == "systemone":
        asked: Any = {
            q.name: {"type": "choice", "instructions": q.text, "criteria": dict.fromkeys(q.options)} for q in questions
        }
        return {"model": model, "state": statement, "images": [image], "questions": asked}
    asked = [
        {"type": "choice", "name": q.name, "instructions": q.text, "choices": [{"value": o} for o in q.options]}
        for q in questions
    ]
    content = [{"type": "input_image", "image_url": image}, {"type": "input_text", "text": statement}]
    message = {"type": "message", "role": "user", "content": content}
    return {"model": model, "input": [message], "questions": asked}


def read_decisions(
    body: bytes, questions: Sequence[Question], redact: Callable[[str], str] = lambda text: text
) -> Completion:
    """Read the answers to questions, in either form.

    Returns:
        A completion whose text is JSON: probabilities by option for each field that was not refused, "unknown" left
        out. They sum to 1 with it.

    Raises:
        ValueError: If it is something else, an answer is missing or no choice, an option was not offered, or the
            probabilities are out of range or do not sum to 1; names it.
    """
    try:
        table = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({type(error).__name__})") from error
    answers = field_of(table, "answers")
    if isinstance(answers, list):  # in the order of the questions, their names repeated or null
        if len(answers) != len(questions):
            raise ValueError(f"it holds {len(answers)} answers to {len(questions)} questions")
        names = [(q.name, field_of(a, "name", q.name)) for q, a in zip(questions, answers, strict=True)]
        if wrong := [redact(show(given)) for name, given in names if given not in (None, name)]:
            raise ValueError(f"its answers are in another order than the questions: {wrong[0]}")
        answers = {q.name: a for q, a in zip(questions, answers, strict=True)}
    if not isinstance(answers, dict):
        raise ValueError(f"it holds no answers: {redact(show(field_of(table, 'error', table)))[:300]}")
    found: dict[str, dict[str, float]] = {}
    try:
        for question in questions:
            if (shares := _shares(question, answers.get(question.name))) is not None:
                found[question.name] = {o: p for o, p in shares.items() if o != UNKNOWN_ANSWER}
    except ValueError as error:
        raise ValueError(redact(str(error))) from None
    usage = field_of(table, "usage")
    return Completion(
        text=json.dumps(found),
        reasoned=False,
        finish="stop",
        refusal=None if found else "refused",
        reported_model=redact(plain_string(field_of(table, "model")))[:_MAX_NAME],
        prompt_tokens=plain_count(field_of(usage, "input_tokens", field_of(usage, "prompt_tokens"))),
        completion_tokens=plain_count(field_of(usage, "output_tokens", field_of(usage, "completion_tokens"))),
    )


def _shares(question: Question, answer: Any) -> dict[str, float] | None:
    """Return the probability of each option, summing to 1; None if the question was refused."""
    name = f"answers.{question.name}"
    if choice("choice", "refusal")(f"{name}.type", field_of(answer, "type")) == "refusal":
        return None
    given = field_of(answer, "probabilities")
    if isinstance(given, list):
        pairs = [(field_of(one, "value"), field_of(one, "probability")) for one in given]
        if len({value for value, _ in pairs if isinstance(value, str)}) < len(pairs):
            raise ValueError(f"{name}.probabilities must name every option once; got {show(given)}")
        given = dict(pairs)
    shares = _PROBABILITIES(f"{name}.probabilities", given)
    if strangers := [option for option in shares if option not in question.options]:
        raise ValueError(f"{name}.probabilities has {show(strangers[0])}, which was not offered")
    total = sum(shares.values())
    if abs(total - 1) > _SLACK:
        raise ValueError(f"{name}.probabilities must sum to 1; they sum to {total:.4g}")
    # cut to six digits, not rounded: rounded ones may sum to more than 1
    return {option: math.floor(max(0.0, shares.get(option, 0.0)) / total * 1e6) / 1e6 for option in question.options}


def read_outputs(body: bytes, model: str) -> list[str] | None:
    """Return what a model gives ("text", "decisions"), as a list of models says; None if it does not say.

    A server with a single model answers to any name.
    """
    try:
        entries = field_of(json.loads(body), "data")
    except (ValueError, RecursionError):
        return None
    entries = entries if isinstance(entries, list) else []
    for entry in entries:
        outputs = field_of(entry, "output_modalities", field_of(field_of(entry, "architecture"), "output_modalities"))
        if isinstance(outputs, list) and (field_of(entry, "id") == model or len(entries) == 1):
            return [plain_string(output) for output in outputs]
    return None
