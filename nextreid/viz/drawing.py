"""What every image of samples is drawn with: a canvas, their images, marks of right and wrong."""

import contextlib
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from nextreid.data.image import Image as Source
from nextreid.data.image import open_image
from nextreid.data.sample import LabelNames, Sample

Size: TypeAlias = tuple[int, int]
Colour: TypeAlias = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (32, 36, 43)
GREY: Colour = (112, 119, 130)
LIGHT: Colour = (214, 218, 224)
# two colours of Okabe and Ito's set that differ under every common colour blindness
CORRECT: Colour = (0, 114, 178)
WRONG: Colour = (213, 94, 0)

MARGIN = 24
TEXT = 13
_SUPERSAMPLING = 4
_LARGEST = 10**8  # pixels
_WIDER = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")
_DARK, _LIFTED, _STEEPEST = 0.12, 0.25, 0.35  # mean grey values of 1, and the least gamma


class Canvas:
    """An RGB image and what figures put on it; ValueError if it would be too large to be looked at."""

    def __init__(self, width: int, height: int) -> None:
        if width * height > _LARGEST:
            raise ValueError(f"the image would have {width} x {height} pixels: draw fewer samples, or smaller images")
        self.image = Image.new("RGB", (width, height), WHITE)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, at: Size, text: str, anchor: str, colour: Colour = BLACK, width: int = 10_000, size: int = TEXT
    ) -> int:
        """Write a text, shortened to `width` pixels, with its Pillow `anchor` at a point; return its width."""
        shown = fit_text(text, size, width)
        self.draw.text(at, shown, colour, font(size, shown), anchor=anchor)
        return round(font(size, shown).getlength(shown))

    def paragraph(
        self, at: Size, text: str, anchor: str, width: int, lines: int, colour: Colour = BLACK, size: int = TEXT
    ) -> int:
        """Write a text in at most so many lines of `width` pixels, the first at a point; return how many it took."""
        shown = wrap_text(text, size, width, lines)
        for number, line in enumerate(shown):
            self.text((at[0], at[1] + number * (size + 3)), line, anchor, colour, size=size)
        return len(shown)

    def frame(self, box: tuple[int, int, int, int], colour: Colour, width: int, dashed: bool = False) -> None:
        """Draw a frame inside `box` (left, top, right, bottom), solid or dashed, `width` pixels thick."""
        left, top, right, bottom = box
        dash = 9 if dashed else max(right - left, bottom - top)
        across = product(range(left, right, 2 * dash - 2), (top, bottom - width))
        down = product((left, right - width), range(top, bottom, 2 * dash - 2))
        bars = [(x, y, min(x + dash, right), y + width) for x, y in across]
        bars += [(x, y, x + width, min(y + dash, bottom)) for x, y in down]
        for x, y, end, foot in bars:
            self.draw.rectangle((x, y, end - 1, foot - 1), fill=colour)

    def legend(self, entries: Sequence[tuple[Image.Image, str]]) -> int:
        """Put symbols, each with its meaning, in one line at the top; return where the line ends."""
        x, y = MARGIN, MARGIN + 8
        for symbol, text in entries:
            self.image.paste(symbol, (x, y - symbol.height // 2))
            x += symbol.width + 8
            x += self.text((x, y), text, "lm") + 24
        return x


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a typeface `size` pixels high: Pillow's own, or for letters beyond basic Latin one that is installed."""
    return _face(size, text.isascii())


@lru_cache
def _face(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont:
    for name in () if ascii_only else _WIDER:
        with contextlib.suppress(OSError):  # it is not installed
            return ImageFont.truetype(name, size)
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


def fit_text(text: str, size: int, width: int) -> str:
    """Shorten a text with dots at its end until it is at most `width` pixels wide."""
    shown = text
    while text and font(size, shown).getlength(shown) > width:
        text = text[:-1]
        shown = text + "..."
    return shown


def wrap_text(text: str, size: int, width: int, lines: int) -> list[str]:
    """Break a text at blanks and at the marks of file names into lines of `width` pixels; dots end what is too long."""
    shown, line = list[str](), ""
    parts = [part for part in re.findall(r"\.?[^\s_/.-]*[\s_/-]?", text) if part]
    while parts:
        part = parts.pop(0)
        if font(size, line + part).getlength((line + part).rstrip()) <= width:
            line += part
        elif len(shown) == lines - 1:
            return [*shown, fit_text(line + part + "".join(parts), size, width)]
        elif line:
            shown.append(line.rstrip())
            line, parts = "", [part, *parts]
        else:  # one part that is wider than a line
            face = font(size, part)
            cut = next((n for n in range(len(part), 1, -1) if face.getlength(part[:n]) <= width), 1)
            shown.append(part[:cut])
            parts = [part[cut:], *parts] if part[cut:] else parts
    return [*shown, line.rstrip()] if line.strip() else shown


def describe_labels(sample: Sample, names: LabelNames | None = None) -> tuple[str, str]:
    """Return identity and place of a sample, as its files name them; the place is empty where nothing is known."""
    names = names or {}

    def named(field: str, value: int) -> str:
        return names.get(field, {}).get(value, str(value))

    place = [
        f"{word} {named(field, value)}"
        for word, field, value in (("cam", "camid", sample.camid), ("scene", "sceneid", sample.sceneid))
        if value >= 0
    ]
    return f"id {named('pid', sample.pid)}" if sample.pid >= 0 else "id unknown", ", ".join(place)


def size_to_draw(samples: Sequence[Sample], longest: int) -> Size:
    """Return the width and height at which to draw: the shape of the first image, its longer side `longest` pixels.

    Raises:
        ValueError: If no sample has an image.
    """
    first = next((source for sample in samples for source in sample.images if source is not None), None)
    if first is None:
        raise ValueError(f"none of {len(samples)} samples has an image to draw")
    width, height = open_image(first).size
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def check_modalities(samples: Sequence[Sample], modalities: Sequence[str]) -> None:
    """Raise ValueError unless each sample has one image, or None, for each modality."""
    for sample in samples:
        if len(sample.images) != len(modalities):
            raise ValueError(
                f"sample {sample.key!r} has {len(sample.images)} images but modalities are {', '.join(modalities)}"
            )


def draw_image(source: Source | None, size: Size) -> Image.Image:
    """Return an image resized to `size` as a model sees it, or a hatched placeholder where it is missing."""
    if source is None:
        return hatched(size)
    image = open_image(source).convert("RGB")
    enlarged = size[0] >= image.width and size[1] >= image.height
    return image.resize(size, Image.Resampling.BICUBIC if enlarged else Image.Resampling.LANCZOS)


def readable(image: Image.Image) -> tuple[Image.Image, bool]:
    """Brighten an image that is too dark to see on paper; return it, and whether it was.

    A gamma curve lifts the mean grey value to a quarter of the scale; it keeps black, white and the order of values.
    """
    histogram = image.convert("L").histogram()
    mean = sum(value * count for value, count in enumerate(histogram)) / (255 * sum(histogram))
    if not 0 < mean < _DARK:
        return image, False
    gamma = max(_STEEPEST, math.log(_LIFTED) / math.log(mean))
    curve = [round(255 * (value / 255) ** gamma) for value in range(256)]
    return image.point(curve * len(image.getbands())), True


def hatched(size: Size) -> Image.Image:
    """Return the placeholder of a missing image: diagonal lines on light grey."""
    width, height = (pixels * _SUPERSAMPLING for pixels in size)
    image = Image.new("RGB", (width, height), (240, 242, 245))
    draw = ImageDraw.Draw(image)
    for x in range(-height, width, 8 * _SUPERSAMPLING):
        draw.line([(x, height), (x + height, 0)], fill=(190, 196, 205), width=_SUPERSAMPLING)
    return image.resize(size, Image.Resampling.LANCZOS)


def mark(correct: bool, size: int) -> Image.Image:
    """Return the mark of a correct entry, a tick in a disc, or of a wrong one, a cross in a square (RGBA)."""
    big = size * _SUPERSAMPLING
    image = Image.new("RGBA", (big, big))
    draw = ImageDraw.Draw(image)
    if correct:
        draw.ellipse((0, 0, big - 1, big - 1), fill=CORRECT)
        strokes = [[(0.25, 0.53), (0.43, 0.71), (0.76, 0.32)]]
    else:
        draw.rectangle((0.06 * big, 0.06 * big, 0.94 * big, 0.94 * big), fill=WRONG)
        strokes = [[(0.28, 0.28), (0.72, 0.72)], [(0.28, 0.72), (0.72, 0.28)]]
    for stroke in strokes:
        draw.line([(x * big, y * big) for x, y in stroke], fill=WHITE, width=round(0.13 * big), joint="curve")
    return image.resize((size, size), Image.Resampling.LANCZOS)
