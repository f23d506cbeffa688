"""The one way to open an image: a file, a part of a file, or an array becomes an image of 8 bits per channel."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image as PILImage
from PIL import ImageFile as PILImageFile
from PIL import ImageOps

OnError = Literal["raise", "skip", "mask"]  # what `drop_unreadable` does about an image that cannot be opened
Reason = Literal["unreadable", "many-bits", "wrong-size"]
Window: TypeAlias = tuple[float, float] | Literal["minmax"]

MAX_PIXELS = 2**26

# those that hold photographs; Pillow would start other programs for some of the rest
_FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


# their usual endings
ENDINGS = ("bmp", "jfif", "jp2", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")

# what systems and archives leave beside images; names that begin with a dot are such too (AppleDouble, .DS_Store)
_SIDECARS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "__macosx", "#recycle", "$recycle.bin"))


def is_sidecar(name: str) -> bool:
    """Return whether a file or folder of this name is no part of a dataset, whatever its ending."""
    return name.startswith(".") or name.casefold() in _SIDECARS


class ImageError(ValueError):
    """An image that cannot be opened.

    Attributes:
        reason: ``"many-bits"``: more than 8 bits per channel and no window; ``"wrong-size"``: not of the declared
            size; else ``"unreadable"``.
    """

    def __init__(self, message: str, reason: Reason = "unreadable") -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that is not simply a whole file of 8 bits per channel.

    Attributes:
        path: The file.
        box: The part of it that is the image: left, upper, right and lower edge in pixels; None takes all of it.
        size: Width and height in pixels that the whole file must have; None takes any.
        window: How values of more than 8 bits become 0 … 255: the raw values (low, high) that become 0 and 255,
            clipping what lies outside, or ``"minmax"`` for each image's own lowest and highest value, which makes
            images of different warmth look alike. None rejects such an image. Images of 8 bits stay as they are.

    Raises:
        ValueError: If the box is empty or the window's low is not below its high.
    """

    path: Path
    box: tuple[int, int, int, int] | None = None
    size: tuple[int, int] | None = None
    window: Window | None = None

    def __post_init__(self) -> None:
        if self.box is not None:
            left, upper, right, lower = self.box
            if not (0 <= left < right and 0 <= upper < lower):
                raise ValueError(f"{self.path}: box must be (left, upper, right, lower) and not empty, got {self.box}")
        if self.window is not None:
            check_window(self.window)


Image: TypeAlias = Path | np.ndarray | ImageFile


def check_window(window: object) -> Window:
    """Return a window as `ImageFile` takes it; a list of two numbers, as JSON writes it, becomes a tuple."""
    if window == "minmax":
        return "minmax"
    if isinstance(window, tuple | list) and len(window) == 2:
        low, high = window
        if isinstance(low, int | float) and isinstance(high, int | float) and low < high:
            return (low, high)
    raise ValueError(f'window must be "minmax" or two raw values (low, high) with low below high, got {window!r}')


def check_windows(windows: Mapping[str, object] | None, modalities: Sequence[str]) -> dict[str, Window]:
    """Return the windows by modality, as `ImageFile` takes them; raise ValueError if one belongs to no modality."""
    if unknown := sorted(set(windows or ()) - set(modalities)):
        raise ValueError(f"window names {unknown}, but the modalities are {tuple(modalities)}")
    return {modality: check_window(window) for modality, window in (windows or {}).items()}


def through_window(path: Path, window: Window | None) -> Image:
    """Return the image of a whole file, read through a window if there is one."""
    return path if window is None else ImageFile(path, window=window)


def image_path(image: Image | None) -> Path | None:
    """Return the file of an image, None for an array or a missing image."""
    if isinstance(image, ImageFile):
        return image.path
    return image if isinstance(image, Path) else None


def open_image(image: Image, key: str = "", modality: str = "") -> PILImage.Image:
    """Open one image, decoded to its end and turned as its EXIF orientation says.

    Args:
        image: A file, a part of one, or a ``(H, W, 3)`` or ``(H, W)`` uint8 array.
        key: Key of the sample, for messages.
        modality: Name of the modality, for messages.

    Returns:
        An image with 8 bits per channel.

    Raises:
        ImageError: If the image cannot be read, is larger than `MAX_PIXELS`, is not of the declared size, or has more
            than 8 bits and no window; names the file, the sample and the modality. It is a ValueError.
    """
    (opened,) = open_images((image,), key, (modality,))
    assert opened is not None
    return opened


def open_images(images: Sequence[Image | None], key: str, modalities: Sequence[str]) -> list[PILImage.Image | None]:
    """Open the M images of one sample, None where one is missing; raise the first error as `open_image` does."""
    opened: list[PILImage.Image | None] = []
    for image in try_images(images, key, modalities):
        if isinstance(image, ImageError):
            raise image
        opened.append(image)
    return opened


def try_images(
    images: Sequence[Image | None], key: str, modalities: Sequence[str]
) -> list[PILImage.Image | ImageError | None]:
    """Open the M images of one sample, each or its error; a file that holds several is decoded once."""
    decoded: dict[Path, PILImage.Image] = {}

    def open_one(image: Image) -> PILImage.Image:
        if isinstance(image, np.ndarray):
            return _to_8_bits(PILImage.fromarray(image), None)
        file = image if isinstance(image, ImageFile) else ImageFile(image)
        if file.path not in decoded:
            decoded[file.path] = _decode(file.path)
        return _to_8_bits(_crop(decoded[file.path], file), file.window)

    opened: list[PILImage.Image | ImageError | None] = []
    for image, modality in zip(images, modalities, strict=True):
        try:
            opened.append(None if image is None else open_one(image))
        except Exception as error:
            whole = str(image_path(image) or "the array")
            whole += f", the {modality} image" if modality else ""
            whole += f" of sample {key!r}" if key else ""
            problem = ImageError(f"cannot read {whole}: {error}", getattr(error, "reason", "unreadable"))
            problem.__cause__ = error
            opened.append(problem)
    return opened


def _decode(path: Path) -> PILImage.Image:
    with PILImage.open(path, formats=_FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels are more than the limit of {MAX_PIXELS}")
        if file.mode in ("RGB", "RGBA", "LA") and _has_deep_channels(file):
            message = "it has 16 bits in each of several channels, which no window maps: save it with 8 bits"
            raise ImageError(message, "many-bits")
        file.load()
        with suppress(Exception):  # the pixels are whole where the EXIF is not
            ImageOps.exif_transpose(file, in_place=True)  # else it would be copied where there is nothing to turn
        return file


def _has_deep_channels(file: PILImageFile.ImageFile) -> bool:
    """Return whether the file has more than 8 bits per channel of colour, of which Pillow keeps the upper 8 silently.

    The raw mode of its tiles shows it (PNG, TIFF), the highest value of a PPM, the header of a JPEG 2000.
    """
    if file.format == "JPEG2000":
        with open(file.filename, "rb") as raw:
            head = raw.read(2**12)
        at = head.find(b"\xff\x4f\xff\x51")  # SOC and SIZ: 36 bytes of sizes, channels (2), then 3 bytes for each
        return at >= 0 and any((depth & 0x7F) > 7 for depth in head[at + 42 : at + 42 + 3 * head[at + 41] : 3])
    for tile in file.tile:
        raw_mode, *rest = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if re.search(";16[BLN]", str(raw_mode)) or (file.format == "PPM" and any(n > 255 for n in rest)):
            return True
    return False


def _crop(opened: PILImage.Image, file: ImageFile) -> PILImage.Image:
    if file.size is not None and opened.size != tuple(file.size):
        expected, found = (f"{width} x {height}" for width, height in (file.size, opened.size))
        raise ImageError(f"it must be {expected} pixels wide and high, found {found}", "wrong-size")
    if file.box is None:
        return opened
    if file.box[2] > opened.width or file.box[3] > opened.height:
        raise ValueError(f"its part {file.box} is not inside its {opened.width} x {opened.height} pixels")
    return opened.crop(file.box)


def _to_8_bits(opened: PILImage.Image, window: Window | None) -> PILImage.Image:
    if not opened.mode.startswith(("I", "F")):
        return opened
    if window is None:
        raise ImageError(
            f"it has more than 8 bits per channel (mode {opened.mode}): say which raw values become black and white, "
            'as in window={"tir": (7000, 9000)} or {"tir": "minmax"} (--window tir=7000,9000), or save it with 8 bits',
            "many-bits",
        )
    values = np.asarray(opened).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    low, high = (values.min(), values.max()) if window == "minmax" else window
    if high == low:
        return PILImage.new("L", opened.size)
    return PILImage.fromarray(np.rint((values.clip(low, high) - low) / (high - low) * 255).astype(np.uint8))
