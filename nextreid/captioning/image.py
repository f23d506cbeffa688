"""The image as a model gets it: small, upright, free of everything but pixels."""

import base64
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LONGEST_SIDE = 512
"""Pixels. Larger images are shrunk to it; crops are usually smaller and stay as they are."""
_QUALITY = 90
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def open_upright(path: Path) -> "Image.Image":
    """Open an image file and turn it as its EXIF orientation says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded; names it.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def prepare(image: "Image.Image", longest: int = LONGEST_SIDE) -> "Image.Image":
    """Return the image as RGB with the longest side at most `longest` pixels, and nothing besides its pixels.

    Raises:
        ValueError: If it has more than 8 bits a channel: how to map these is for the reader to say.
    """
    from PIL import Image

    if image.mode not in _EIGHT_BITS:
        raise ValueError(f"an image of mode {image.mode} has more than 8 bits; map it to 0..255 first")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    image = image.convert("RGB")
    scale = longest / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    # a new image has no EXIF, no profile and no comment that could be written with it
    return Image.frombytes("RGB", image.size, image.tobytes())


def image_digest(prepared: "Image.Image") -> str:
    """Return 32 hex digits of the pixels that `prepare` left, whatever file they came from."""
    size = "{}x{}:".format(*prepared.size).encode()
    return hashlib.sha256(size + prepared.tobytes()).hexdigest()[:32]


def data_url(prepared: "Image.Image") -> str:
    """Return the image as a ``data:image/jpeg;base64,`` address, the same for the same pixels."""
    buffer = io.BytesIO()
    prepared.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, optimize=False, progressive=False)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
