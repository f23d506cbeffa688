"""Images to reliable captions: attributes with confidence, merged, composed, parsed back, audited."""

from .audit import Audit, AuditTable, audit_captions
from .grammar import Parsed, compose, parse
from .merge import Decision, Merged, best_of, complement
from .phrasing import Phrasing, phrasing_of
from .quality import Quality, caption_quality, quality_of_dataset, quality_of_files
from .schema import Answer, Answers, Field, Schema, get_schema, list_schemas, register_schema

__all__ = [
    "Answer",
    "Answers",
    "Audit",
    "AuditTable",
    "Decision",
    "Field",
    "Merged",
    "Parsed",
    "Phrasing",
    "Quality",
    "Schema",
    "audit_captions",
    "best_of",
    "caption_quality",
    "complement",
    "compose",
    "get_schema",
    "list_schemas",
    "parse",
    "phrasing_of",
    "quality_of_dataset",
    "quality_of_files",
    "register_schema",
]
