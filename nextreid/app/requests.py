"""The bodies of requests: JSON of known keys, images in base64, all of it checked before anything is decoded."""

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from PIL import Image as PILImage

from nextreid._names import unknown
from nextreid._schema import Kind, either, flag, listed, mapping, number, optional, plain_texts, table, text, whole

MOST_HITS, PLAIN, LONGEST = 1000, 100, 1000
_FORMATS = ("PNG", "JPEG", "WEBP")
_value = either(flag, text(LONGEST), number(-1e15, 1e15))
_end = optional(either(number(-1e15, 1e15), text(100)))
_where = mapping(either(_value, listed(_value, 1, PLAIN, "a list of values"), table({"from": _end, "to": _end})), PLAIN)
_images = mapping(text(2**30), 16)
_label = optional(either(text(LONGEST), whole(-(2**53), 2**53)))

SEARCH = table({"images": _images, "text": text(LONGEST), "k": whole(1, MOST_HITS), "where": _where}, "key")
MATCH = table(
    {"images": _images, "where": _where, "least": number(0, 1), "false_match_rate": optional(number(0, 1))},
    "key",
    required=("images",),
)
ENTRY = table(
    {
        "images": _images,
        "key": text(LONGEST),
        "identity": _label,
        "camera": _label,
        "time": _end,
        "metadata": mapping(plain_texts, PLAIN),
    },
    "key",
    required=("images",),
)


def parse(body: bytes, kind: Kind) -> dict[str, Any]:
    """Read a body.

    Raises:
        UnicodeDecodeError: It is not UTF-8.
        json.JSONDecodeError: It is not JSON.
        ValueError: It is not what `kind` says; names the key.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error
    found = kind("body: ", value) if isinstance(value, Mapping) else kind("the body", value)
    if "where" in found:
        found["where"] = {name: _condition(given) for name, given in found["where"].items()}
    return found


def decode_images(given: Mapping[str, str], modalities: Sequence[str], max_pixels: int) -> dict[str, PILImage.Image]:
    """Open images without decoding their pixels; ValueError if one is none, or too large."""
    if not given:
        raise ValueError(f"images: give one or more of {', '.join(modalities)}")
    images: dict[str, PILImage.Image] = {}
    for name, data in given.items():
        if name not in modalities:
            raise ValueError(unknown("modality", name, modalities))
        try:
            opened = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"the {name} image is not base64") from error
        images[name] = open_sent(opened, name, max_pixels)
    return images


def open_sent(data: bytes, name: str, max_pixels: int) -> PILImage.Image:
    """Open an image without decoding its pixels; ValueError if it is none, or too large."""
    try:
        image = PILImage.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # decoders raise errors of many types
        raise ValueError(f"the {name} image is no {', '.join(_FORMATS)} file") from error
    if image.width * image.height > max_pixels:
        raise ValueError(f"the {name} image is {image.width} x {image.height}, more than {max_pixels} pixels")
    return image


def _condition(given: Any) -> Any:
    if isinstance(given, dict):
        return given.get("from"), given.get("to")
    return list(given) if isinstance(given, tuple) else given  # a tuple of two would be a range


def _no_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no JSON", "", 0)
