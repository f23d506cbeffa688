"""Images of any depth and place, opened as 8-bit images, and what to do about those that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

if TYPE_CHECKING:
    from .sample import Sample

OnError = Literal["raise", "skip", "mask"]
Window: TypeAlias = "tuple[float, float] | Literal['minmax']"

MAX_PIXELS = 2**26

# those that hold photographs; Pillow would start other programs for some of the rest
_FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image that is not simply a whole file of 8 bits per channel.

    Attributes:
        path: The file.
        box: The part of it that is the image: left, upper, right and lower edge in pixels; None takes all of it.
        size: Width and height in pixels that the whole file must have; None takes any.
        window: How values of more than 8 bits become 0 … 255: the raw values (low, high) that become 0 and 255,
            clipping what lies outside, or ``"minmax"`` for each image's own lowest and highest value, which makes
            images of different warmth look alike. None refuses such an image. Images of 8 bits stay as they are.

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
    """Return a window as `ImageFile` takes it; a list of two numbers, as JSON writes it, becomes a tuple.

    Raises:
        ValueError: If it is neither "minmax" nor two numbers of which the first is the lower.
    """
    if window == "minmax":
        return "minmax"
    if isinstance(window, tuple | list) and len(window) == 2:
        low, high = window
        if isinstance(low, int | float) and isinstance(high, int | float) and low < high:
            return (low, high)
    raise ValueError(f'window must be "minmax" or two raw values (low, high) with low below high, got {window!r}')


def check_windows(windows: Mapping[str, object] | None, modalities: Sequence[str]) -> dict[str, Window]:
    """Return the windows by modality, as `check_window` returns each.

    Raises:
        ValueError: If one is wrong or belongs to no modality.
    """
    checked = {modality: check_window(window) for modality, window in (windows or {}).items()}
    if foreign := sorted(set(checked) - set(modalities)):
        raise ValueError(f"window names {foreign}, but the modalities are {tuple(modalities)}")
    return checked


def through_window(path: Path, window: Window | None) -> Image:
    """Return the image of a whole file, read through a window if there is one."""
    return path if window is None else ImageFile(path, window=window)


def image_path(image: Image) -> Path | None:
    """Return the file of an image, None for an array."""
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
        ValueError: If the image cannot be read, is larger than `MAX_PIXELS`, has not the declared size, or has more
            than 8 bits and no window; names the file, the sample and the modality.
    """
    (opened,) = open_images((image,), key, (modality,))
    assert opened is not None
    return opened


def open_images(images: Sequence[Image | None], key: str, modalities: Sequence[str]) -> list[PILImage.Image | None]:
    """Open the M images of one sample, None where one is missing; a file that holds several is decoded once.

    See `open_image`.
    """
    decoded: dict[Path, PILImage.Image] = {}
    opened_images: list[PILImage.Image | None] = []
    for image, modality in zip(images, modalities, strict=True):
        if image is None:
            opened_images.append(None)
            continue
        try:
            if isinstance(image, np.ndarray):
                opened_images.append(_to_8_bits(PILImage.fromarray(image), None))
                continue
            file = image if isinstance(image, ImageFile) else ImageFile(image)
            if file.path not in decoded:
                decoded[file.path] = _decode(file.path)
            opened_images.append(_to_8_bits(_cut(decoded[file.path], file), file.window))
        except Exception as error:
            raise ValueError(f"cannot read {_name(image, key, modality)}: {error}") from error
    return opened_images


def image_errors(sample: Sample, modalities: Sequence[str]) -> dict[str, str]:
    """Decode the images of a sample and return what is wrong, by modality; empty where all can be read."""
    errors: dict[str, str] = {}
    try:
        open_images(sample.images, sample.key, modalities)
        return errors
    except ValueError:
        pass  # something is wrong: look at each
    for image, modality in zip(sample.images, modalities, strict=True):
        if image is not None:
            try:
                open_image(image, sample.key, modality)
            except ValueError as error:
                errors[modality] = str(error)
    return errors


def drop_unreadable(
    samples: Sequence[Sample], modalities: Sequence[str], on_error: OnError
) -> tuple[tuple[Sample, ...], list[str]]:
    """Decode every image once and decide about those that cannot be read, before anything is trained or scored.

    The outcome depends on the files only, so that worker processes and ranks agree on the samples.

    Args:
        samples: Samples with one image per modality.
        modalities: Names of the images, in their order.
        on_error: ``"raise"`` an error that counts all bad images, ``"skip"`` samples that have one, or ``"mask"``:
            the modality is missing from there on, image and caption; a sample without any is left out.

    Returns:
        The samples that remain, in their order and untouched where nothing was wrong, and a note for each thing done.

    Raises:
        ValueError: If an image is bad and `on_error` is "raise", or `on_error` is none of the three.
    """
    (kept,), notes = drop_unreadable_splits({"samples": samples}, modalities, on_error)
    return kept, notes


def drop_unreadable_splits(
    splits: dict[str, Sequence[Sample]], modalities: Sequence[str], on_error: OnError
) -> tuple[list[tuple[Sample, ...]], list[str]]:
    """Screen several splits as `drop_unreadable` does one; a sample that is in two of them is decoded once."""
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}; got {on_error!r}")
    every = {id(sample): sample for samples in splits.values() for sample in samples}
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        looked = pool.map(lambda sample: image_errors(sample, modalities), every.values())
        errors = {number: found for number, found in zip(every, looked, strict=True) if found}
    if errors and on_error == "raise":
        messages = [message for found in errors.values() for message in found.values()]
        raise ValueError(
            f"{len(messages)} images of {len(errors)} samples cannot be read; repair them, or leave out the samples "
            'with on_error="skip" or only the images with on_error="mask":\n' + _lines(messages)
        )
    repaired = {
        number: _masked(every[number], found, modalities) if on_error == "mask" else None
        for number, found in errors.items()
    }
    notes: list[str] = []
    out: list[tuple[Sample, ...]] = []
    for split, samples in splits.items():
        bad = [sample for sample in samples if id(sample) in errors]
        after = [repaired.get(id(sample), sample) for sample in samples]
        out.append(tuple(sample for sample in after if sample is not None))
        dropped = [sample.key for sample in bad if repaired[id(sample)] is None]
        if dropped:
            why = "an image" if on_error == "skip" else "all of their images"
            notes.append(f"{split}: {len(dropped)} samples left out, {why} cannot be read: {_some(dropped)}")
        for modality in modalities:
            hidden = [s.key for s in bad if modality in errors[id(s)] and repaired[id(s)] is not None]
            if hidden:
                notes.append(f"{split}: {modality} of {len(hidden)} samples cannot be read, missing: {_some(hidden)}")
    return out, notes


def _decode(path: Path) -> PILImage.Image:
    with PILImage.open(path, formats=_FORMATS) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels are more than the limit of {MAX_PIXELS}")
        # Pillow keeps the upper 8 bits of 16-bit colour without a word; the raw mode in its tiles tells
        if file.mode in ("RGB", "RGBA", "LA") and any(re.search(";16[BLN]", str(tile[3])) for tile in file.tile):
            raise ValueError("it has 16 bits in each of several channels, which no window maps: save it with 8 bits")
        file.load()
        ImageOps.exif_transpose(file, in_place=True)  # else it would be copied where there is nothing to turn
        return file


def _cut(opened: PILImage.Image, file: ImageFile) -> PILImage.Image:
    if file.size is not None and opened.size != tuple(file.size):
        expected, found = (f"{width} x {height}" for width, height in (file.size, opened.size))
        raise ValueError(f"it must be {expected} pixels wide and high, found {found}")
    if file.box is None:
        return opened
    if file.box[2] > opened.width or file.box[3] > opened.height:
        raise ValueError(f"its part {file.box} is not inside its {opened.width} x {opened.height} pixels")
    return opened.crop(file.box)


def _to_8_bits(opened: PILImage.Image, window: Window | None) -> PILImage.Image:
    if not opened.mode.startswith(("I", "F")):
        return opened
    if window is None:
        raise ValueError(
            f"it has more than 8 bits per channel (mode {opened.mode}): say which raw values become black and white, "
            'as in window={"tir": (7000, 9000)} or window={"tir": "minmax"}, or save it with 8 bits'
        )
    values = np.asarray(opened).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite numbers")
    low, high = (values.min(), values.max()) if window == "minmax" else window
    if high == low:
        return PILImage.new("L", opened.size)
    return PILImage.fromarray(np.rint((values.clip(low, high) - low) / (high - low) * 255).astype(np.uint8))


def _masked(sample: Sample, bad: dict[str, str], modalities: Sequence[str]) -> Sample | None:
    """Return the sample without the bad modalities, None where no image is left."""
    images = tuple(None if m in bad else image for m, image in zip(modalities, sample.images, strict=True))
    if all(image is None for image in images):
        return None
    captions = tuple(() if m in bad else text for m, text in zip(modalities, sample.captions, strict=False))
    return replace(sample, images=images, captions=captions)


def _name(image: Image, key: str, modality: str) -> str:
    path = image_path(image)
    name = "the array" if path is None else str(path)
    owner = f" of sample {key!r}" if key else ""
    return f"{name}, the {modality} image{owner}" if modality else name + owner


def _lines(messages: Sequence[str], limit: int = 5) -> str:
    more = [f"… and {len(messages) - limit} more"] if len(messages) > limit else []
    return "\n".join([*messages[:limit], *more])


def _some(keys: Sequence[str], limit: int = 3) -> str:
    return ", ".join(keys[:limit]) + (", …" if len(keys) > limit else "")
