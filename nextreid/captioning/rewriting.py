"""Captions written by a language model from merged answers, as in the paper; the template's are the fallback."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.captions import split_sentences
from .answers import parse_reply
from .client import Server
from .runner import Job
from .schema import Answers, Schema
from .store import Store, call_key

_DEBRIS = re.compile(r"[\[\]{}|<>`*#]|\b(?:unknown|unclear|n/?a|not specified)\b", re.IGNORECASE)


def rewrite_job(schema: Schema, modality: str, answers: Answers, draft: Sequence[str], server: Server) -> Job:
    """Return the job in which a language model writes one caption from the known answers and the template's draft.

    No image is sent, only attributes.
    """
    known = {name: answer.value for name, answer in answers.items() if answer.value is not None}
    facts = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in known.items())
    prompt = (
        f"Describe a {schema.object} in plain English from the facts below, in one paragraph of short sentences in the "
        "order of the draft. Tell every fact once, add none, guess nothing, and leave out whatever is not listed. "
        f"Write the description alone.\n\nFacts:\n{facts}\n\nDraft:\n{' '.join(draft)}"
    )
    parts = {
        "schema": schema.digest(),
        "schema_name": f"{schema.name} {schema.version}",
        "facts": call_key(facts=known),
        "modality": modality,
    }
    return Job(server, parts, prompt, options={"max_tokens": 400, "temperature": 0.0})


def read_rewrite(job: Job, schema: Schema, draft: Sequence[str], store: Store) -> tuple[tuple[str, ...], str]:
    """Return the caption that a model wrote, or the draft if that is not usable, and why (``""`` if it is).

    Not usable is a refusal, a text that was cut off, one with brackets, choices or words for "unknown", one more than
    twice as long as the draft, and one that names a colour the draft does not have.
    """
    rows = job.stored(store)
    text = " ".join((rows[-1]["text"] or "").split()) if rows else ""
    why = _fault(rows[-1], text, " ".join(draft), schema) if rows else "missing"
    return (tuple(draft), why) if why else (split_sentences(text), "")


def _fault(row: Mapping[str, Any], text: str, draft: str, schema: Schema) -> str:
    if not text or row["refusal"] or parse_reply(text, schema, row["modality"]).status == "refused":
        return "refused" if text or row["refusal"] else "empty"
    if row["finish"] == "length" or text[-1] not in ".!":
        return "cut off"
    if _DEBRIS.search(text):
        return "debris"
    if len(text) > 2 * len(draft) + 40:
        return "too long"
    colours = {value for field in schema.fields if "color" in field.name for value in field.values if " " not in value}
    new, old = (set(re.findall(r"[a-z]+", part.lower())) for part in (text, draft))
    return "invented" if (new & colours) - old else ""
