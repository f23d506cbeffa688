"""Images to reliable captions: attributes with confidence, merged, composed, parsed back, audited."""

from .audit import Audit, audit_captions
from .audit_report import write_audit
from .compose import compose
from .merge import Decision, Merged, best_of, complement
from .parse import Parsed, parse
from .phrasing import Wording, wording_of
from .schema import Answer, Answers, Field, Schema, get_schema, list_schemas, register_schema
from .text import read_captions, split_sentences

__all__ = [
    "Answer",
    "Answers",
    "Audit",
    "Decision",
    "Field",
    "Merged",
    "Parsed",
    "Schema",
    "Wording",
    "audit_captions",
    "best_of",
    "complement",
    "compose",
    "get_schema",
    "list_schemas",
    "parse",
    "read_captions",
    "register_schema",
    "split_sentences",
    "wording_of",
    "write_audit",
]
