"""What every figure is drawn with: type, colours, images of samples, marks, and saving."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from nextreid._files import write_whole
from nextreid.data.image import Image as Source
from nextreid.data.image import open_image
from nextreid.data.sample import Sample

Size: TypeAlias = tuple[int, int]
Colour: TypeAlias = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (32, 36, 43)
FAINT: Colour = (112, 119, 130)
RULE: Colour = (214, 218, 224)
# two colours of Okabe and Ito's set that differ under every common colour blindness
RIGHT: Colour = (0, 114, 178)
WRONG: Colour = (213, 94, 0)

_SMOOTH = 4


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's built-in typeface (basic Latin only), `size` pixels high."""
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


def fit_text(text: str, size: int, width: int) -> str:
    """Shorten a text with dots at its end until it is at most `width` pixels wide."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def size_to_draw(samples: Sequence[Sample], longest: int) -> Size:
    """Return the width and height at which to draw: the shape of the first image, its longer side `longest` pixels.

    Raises:
        ValueError: If no sample has an image.
    """
    for sample in samples:
        for source in sample.images:
            if source is not None:
                width, height = open_image(source).size
                scale = longest / max(width, height)
                return max(1, round(width * scale)), max(1, round(height * scale))
    raise ValueError(f"none of {len(samples)} samples has an image to draw")


def draw_image(source: Source | None, size: Size) -> Image.Image:
    """Return an image squashed to `size` as a model sees it, or a hatched placeholder where it is missing."""
    if source is None:
        return hatched(size)
    image = open_image(source).convert("RGB")
    enlarged = size[0] >= image.width and size[1] >= image.height
    return image.resize(size, Image.Resampling.BICUBIC if enlarged else Image.Resampling.LANCZOS)


def hatched(size: Size) -> Image.Image:
    """Return the placeholder of a missing image: diagonal lines on light grey."""
    width, height = size
    canvas = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), (240, 242, 245))
    draw = ImageDraw.Draw(canvas)
    for x in range(-height, width, 8):
        draw.line([(x * _SMOOTH, height * _SMOOTH), ((x + height) * _SMOOTH, 0)], fill=(190, 196, 205), width=_SMOOTH)
    return canvas.resize(size, Image.Resampling.LANCZOS)


def mark(kind: Literal["right", "wrong"], size: int) -> Image.Image:
    """Return the mark of a right entry, a tick in a disc, or of a wrong one, a cross in a square (RGBA)."""
    big = size * _SMOOTH
    canvas = Image.new("RGBA", (big, big))
    draw = ImageDraw.Draw(canvas)
    stroke = round(0.13 * big)

    def points(*shares: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * big, y * big) for x, y in shares]

    if kind == "right":
        draw.ellipse((0, 0, big - 1, big - 1), fill=RIGHT)
        draw.line(points((0.25, 0.53), (0.43, 0.71), (0.76, 0.32)), fill=PAPER, width=stroke, joint="curve")
    else:
        draw.rectangle((0.06 * big, 0.06 * big, 0.94 * big, 0.94 * big), fill=WRONG)
        draw.line(points((0.28, 0.28), (0.72, 0.72)), fill=PAPER, width=stroke)
        draw.line(points((0.28, 0.72), (0.72, 0.28)), fill=PAPER, width=stroke)
    return canvas.resize((size, size), Image.Resampling.LANCZOS)


def frame(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, width: int, dashed: bool) -> None:
    """Draw a frame inside `box` (left, top, right, bottom), solid or dashed, `width` pixels thick."""
    left, top, right, bottom = box
    dash = 9 if dashed else max(right - left, bottom - top)
    for x in range(left, right, 2 * dash - 2):
        for y in (top, bottom - width):
            draw.rectangle((x, y, min(x + dash, right) - 1, y + width - 1), fill=colour)
    for y in range(top, bottom, 2 * dash - 2):
        for x in (left, right - width):
            draw.rectangle((x, y, x + width - 1, min(y + dash, bottom) - 1), fill=colour)


def save_image(image: Image.Image, path: str | Path) -> Path:
    """Save an image in the format of its suffix; a reader sees the old file or the whole new one.

    Raises:
        ValueError: If Pillow cannot write the suffix.
    """
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"cannot save {path.name!r}: unknown image suffix {path.suffix!r}; use .png or .jpg")
    write_whole(path, lambda temporary: image.save(temporary, format=kind))
    return path
