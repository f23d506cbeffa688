"""What the server answers, as an OpenAPI document; the checks are in ``requests.py``."""

from collections.abc import Mapping, Sequence
from typing import Any

from nextreid.version import __version__

from .requests import LONGEST, MOST_HITS, PLAIN

Schema = dict[str, Any]
_LABEL: Schema = {"type": ["string", "integer", "null"], "maxLength": LONGEST}
_WORD: Schema = {"type": ["string", "number", "boolean"], "maxLength": LONGEST}
_WHERE: Schema = {
    "type": "object",
    "description": "Conditions that all hold, by field or name of metadata: a value, some values, or a range.",
    "additionalProperties": {
        "anyOf": [
            _WORD,
            {"type": "array", "items": _WORD, "minItems": 1, "maxItems": PLAIN},
            {
                "type": "object",
                "properties": {name: {"type": ["number", "string", "null"]} for name in ("from", "to")},
                "additionalProperties": False,
                "minProperties": 1,
            },
        ]
    },
}
_HIT: Schema = {
    "type": "object",
    "properties": {"key": {"type": "string"}, "identity": {"type": "string"}, "score": {"type": "number"}},
    "required": ["key"],
}
_ERROR: Schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_ERRORS = {
    "400": "The body is not JSON, or not in UTF-8",
    "401": "The token is missing or another one",
    "404": "There is no such entry or identity",
    "408": "The body did not arrive in time",
    "409": "The gallery's model is not calibrated, or the key is taken",
    "413": "The body is too large",
    "415": "The body is not declared as application/json",
    "422": "A value does not fit; the message names it",
    "503": "Too many requests wait, or the disk is full",
}


def document(modalities: Sequence[str], secured: bool) -> Schema:
    """The document of a gallery with these modalities."""
    image = {"type": "string", "minLength": 1, "contentEncoding": "base64", "description": "PNG, JPEG or WebP file"}
    images = {
        "type": "object",
        "properties": dict.fromkeys(modalities, image),
        "additionalProperties": False,
        "minProperties": 1,
    }
    k = {"type": "integer", "minimum": 1, "maximum": MOST_HITS, "default": 10}
    search = {
        "images": images,
        "text": {"type": "string", "minLength": 1, "maxLength": LONGEST},
        "k": k,
        "where": _WHERE,
    }
    entry = {
        "images": images,
        "key": {"type": "string", "maxLength": LONGEST},
        "identity": _LABEL,
        "camera": _LABEL,
        "time": {"type": ["number", "string", "null"], "description": "Seconds since 1970, or ISO text"},
        "metadata": {"type": "object"},
    }
    match = {
        "images": images,
        "where": _WHERE,
        "least": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        "false_match_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    }
    hits = _object({"hits": {"type": "array", "items": _HIT}})
    deleted = _object({"deleted": {"type": "integer", "minimum": 0}})
    matched = _object(
        {
            "identity": {"type": ["string", "null"]},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
            "nearest": {"anyOf": [_HIT, {"type": "null"}]},
        }
    )
    health = _object({"status": {"const": "ok"}, "entries": {"type": "integer", "minimum": 0}})
    paths = {
        "/health": {"get": _operation("Whether it answers", "200", health, [])},
        "/search": {"post": _operation("Nearest entries to images or words, or all that fit", "200", hits, [], search)},
        "/match": {"post": _operation("Who images show, or that it is unknown", "200", matched, ["images"], match)},
        "/entries": {
            "post": _operation("Add an entry", "201", _object({"key": {"type": "string"}}), ["images"], entry)
        },
        "/entries/{key}": {"delete": _operation("Delete an entry", "200", deleted, [], path="key")},
        "/identities/{identity}": {"delete": _operation("Forget an identity", "200", deleted, [], path="identity")},
        "/compact": {"post": _operation("Remove deleted entries' bytes from the disk", "200", deleted, [])},
    }
    done: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "nextreid gallery", "version": __version__},
        "paths": paths,
    }
    if secured:
        done["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        done["security"] = [{"token": []}]
        paths["/health"]["get"]["security"] = []
    return done


def _object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _json(schema: Schema, description: str = "") -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str,
    status: str,
    answer: Schema,
    required: Sequence[str],
    body: Mapping[str, Schema] | None = None,
    path: str | None = None,
) -> Schema:
    done: Schema = {"summary": summary, "responses": {status: _json(answer, summary)}}
    done["responses"] |= {code: _json(_ERROR, text) for code, text in _ERRORS.items()}
    if body is not None:
        schema = {
            "type": "object",
            "properties": dict(body),
            "required": list(required),
            "additionalProperties": False,
        }
        done["requestBody"] = {"required": True, **_json(schema)}
        done["requestBody"].pop("description")
    if path is not None:
        label = {"type": "string", "minLength": 1}
        done["parameters"] = [{"name": path, "in": "path", "required": True, "schema": label}]
    return done
