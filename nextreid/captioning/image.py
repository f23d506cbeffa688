"""The image as a model gets it: small, RGB, free of everything but pixels."""

import base64
import hashlib
import io

from PIL import Image

LONGEST_SIDE = 512
"""Pixels. Larger images are shrunk to it; crops are usually smaller and stay as they are."""
_QUALITY = 90


def prepare(image: Image.Image) -> Image.Image:
    """Return an image (8 bits a channel) as RGB of at most `LONGEST_SIDE`, without anything besides its pixels."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    image = image.convert("RGB")
    scale = LONGEST_SIDE / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    # a new image has no EXIF, no profile and no comment that could be written with it
    return Image.frombytes("RGB", image.size, image.tobytes())


def image_digest(prepared: Image.Image) -> str:
    """Return 32 hex digits of the pixels that `prepare` left, whatever file they came from."""
    size = "{}x{}:".format(*prepared.size).encode()
    return hashlib.sha256(size + prepared.tobytes()).hexdigest()[:32]


def data_url(prepared: Image.Image) -> str:
    """Return the image as a ``data:image/jpeg;base64,`` address, the same for the same pixels."""
    buffer = io.BytesIO()
    prepared.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, optimize=False, progressive=False)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
