"""Captions that a language model writes from merged attributes (NEXT, Fig. 8 and 9), checked before they are used."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.captions import split_sentences
from .client import Server
from .runner import Job
from .schema import Answers, Schema, published_text
from .store import Store, call_key
from .text import is_refusal

_DEBRIS = re.compile(r"[\[\]{}|<>`*#]|\b(?:unknown|unclear|n/?a|not specified)\b", re.IGNORECASE)
_WORD = re.compile(r"[a-z]{4,}")
_LEAST_SHARED = 0.3  # of the draft's words; a text with fewer is about something else
# the paper's words for what the schema answers by yes and no (Fig. 6)
_FLAGS = {
    "handbag": {"yes": "carrying handbag", "no": "not"},
    "backpack": {"yes": "carrying backpack", "no": "not"},
    "glasses": {"yes": "wearing glasses", "no": "not"},
    "suitcase": {"yes": "dragging", "no": "not dragging"},
}
_PLAIN = (
    "Describe a {object} in plain English from the JSON data below, in one paragraph of short sentences in the order "
    "of the draft. Report every attribute once, add none, guess nothing, and leave out whatever is not listed. "
    "Write the description alone.\n\nDraft: {draft}"
)


def rewrite_job(
    schema: Schema,
    modality: str,
    answers: Answers,
    draft: Sequence[str],
    server: Server,
    *,
    min_confidence: float = 0.0,
) -> Job:
    """Return the job in which a language model writes one caption from the answers with their confidences.

    It is asked by the published instruction, to the letter (Fig. 8 for a schema of the template ``"person"``, Fig. 9
    for ``"vehicle"``), with the JSON data behind it; for another schema by one that shows the template's draft.
    Answers that `compose` leaves out are not in the data. No image is sent, only attributes.
    """
    shown = {f.name for f in schema.for_modality(modality)}
    facts = {
        name: {"value": _FLAGS.get(name, {}).get(str(answer.value), answer.value), "confidence": answer.weight}
        for name, answer in answers.items()
        if name in shown and answer.is_known(min_confidence)
    }
    if schema.template in ("person", "vehicle"):
        prompt = published_text(f"{schema.template}_caption.txt")
    else:
        prompt = _PLAIN.format(object=schema.object, draft=" ".join(draft))
    prompt += "\n\n" + json.dumps(facts, indent=2, ensure_ascii=False)
    parts = {
        "schema": schema.digest(),
        "schema_name": f"{schema.name} {schema.version}",
        "facts": call_key(facts=facts),
        "modality": modality,
    }
    return Job(server, parts, prompt, options={"max_tokens": 400, "temperature": 0.0})


def read_rewrite(job: Job, schema: Schema, draft: Sequence[str], store: Store) -> tuple[tuple[str, ...], str]:
    """Return the caption that a model wrote, or the draft if that is not usable, and why (``""`` if it is).

    Not usable is a refusal, a text that was cut off or came from a reasoning field, one with brackets, choices or words
    for "unknown", one more than twice as long as the draft, one that names a colour the draft does not have, and one
    that shares hardly a word with it.
    """
    rows = job.stored(store)
    text = " ".join((rows[-1].get("text") or "").split()) if rows else ""
    why = _fault(rows[-1], text, " ".join(draft), schema) if rows else "missing"
    return (tuple(draft), why) if why else (split_sentences(text), "")


def _fault(row: Mapping[str, Any], text: str, draft: str, schema: Schema) -> str:
    if row.get("refusal") or row.get("finish") == "content_filter" or is_refusal(text):
        return "refused"
    if not text:
        return "empty"
    if row.get("reasoned"):
        return "thinking"
    if row.get("finish") == "length" or text[-1] not in ".!":
        return "cut off"
    if _DEBRIS.search(text):
        return "debris"
    if len(text) > 2 * len(draft) + 40:
        return "too long"
    colours = {value for field in schema.fields if "color" in field.name for value in field.values if " " not in value}
    new, old = (set(re.findall(r"[a-z]+", part.lower())) for part in (text, draft))
    if (new & colours) - old:
        return "invented"
    stated = set(_WORD.findall(draft.lower()))
    return "unrelated" if len(stated & new) < _LEAST_SHARED * len(stated) else ""
