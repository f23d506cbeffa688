"""Images of samples as small files: of the given folders only, made once and kept in a bounded folder."""

import hashlib
import io
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageOps

from nextreid._files import user_path, write_whole
from nextreid.data.image import Image, ImageError, ImageFile, image_path, open_image
from nextreid.viz.drawing import GREY, TEXT, WRONG, font, hatched, readable

_logger = logging.getLogger(__name__)

TILE, LARGE = 144, 1024  # longer side of an image in a stack, and of one alone
_FORM = "1"  # of the stacks; another one makes them again
_GAP = 2
_AFTER = 0.8  # of the most bytes, once the oldest are gone


def default_cache() -> Path:
    """The folder of the user's caches that thumbnails are kept in."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nextreid" / "thumbnails"


class Thumbnails:
    """Makes images small, and keeps what it made.

    Args:
        folder: Where they are kept; made if it is not there, readable by its owner only. None: nowhere.
        roots: Folders whose files may be shown; links that lead out of them are not followed.
        most: Bytes that may be kept; the oldest go first.
    """

    def __init__(self, folder: Path | None, roots: Iterable[str | Path], most: int = 2**29) -> None:
        self._folder, self._most = folder, most
        self._roots = tuple({Path(os.path.realpath(user_path(root))) for root in roots})
        self._decoding = threading.BoundedSemaphore(os.cpu_count() or 1)  # each may take a large image's memory
        self._guard, self._bytes = threading.Lock(), -1

    def check(self, image: Image) -> Image:
        """Return an image under the name that its file really has.

        Raises:
            PermissionError: The file is outside of the given folders.
            FileNotFoundError: It is gone.
        """
        path = image_path(image)
        if path is None:
            return image
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise PermissionError(
                f"{path} is not in the folders that were given, or is a link that leads out of them: to see it name "
                "its folder, too (--images FOLDER)"
            )
        if not real.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        return ImageFile(real, image.box, image.size, image.window) if isinstance(image, ImageFile) else real

    def problem(self, image: Image, key: str, modality: str) -> str | None:
        """What is wrong with an image, for people; None if it can be shown."""
        try:
            with self._decoding:
                open_image(self.check(image), key, modality)
        except (OSError, ImageError) as error:
            return str(error)
        return None

    def stack(self, images: Sequence[Image | None]) -> tuple[bytes, Path | None]:
        """The images of a sample below each other, as a JPEG; dark ones are brighter.

        An image that is missing is hatched; one that cannot be shown says so.

        Returns:
            The file, and where `keep` should put it; None if it is there.
        """
        place = self._place(images)
        if place is not None:
            with suppress(OSError):
                return place.read_bytes(), None
        with self._decoding:
            tiles = _tiles([None if image is None else self._open(image) for image in images])
        width, height = tiles[0].size
        stacked = PILImage.new("RGB", (width, len(tiles) * (height + _GAP) - _GAP), (255, 255, 255))
        for row, tile in enumerate(tiles):
            stacked.paste(tile, (0, row * (height + _GAP)))
        return _jpeg(stacked, 88), place

    def large(self, image: Image, key: str = "", modality: str = "") -> bytes:
        """One image as it is, as a JPEG of at most `LARGE` pixels a side.

        Raises:
            OSError: See `check`.
            ImageError: It cannot be read.
        """
        with self._decoding:
            opened = open_image(self.check(image), key, modality).convert("RGB")
            opened.thumbnail((LARGE, LARGE), PILImage.Resampling.LANCZOS)
        return _jpeg(opened, 92)

    def keep(self, data: bytes, place: Path) -> None:
        """Write what `stack` made, and remove the oldest files where there are too many bytes."""
        folder = place.parent.parent
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(place, lambda temporary: temporary.write_bytes(data))
        except OSError as error:
            self._folder = None
            _logger.warning("thumbnails are not kept: %s", error)
            return
        with self._guard:
            self._bytes = sum(size for _, size, _ in _files(folder)) if self._bytes < 0 else self._bytes + len(data)
            if self._bytes > self._most:
                for _, size, path in sorted(_files(folder)):
                    if self._bytes <= _AFTER * self._most:
                        break
                    path.unlink(missing_ok=True)
                    self._bytes -= size

    def _open(self, image: Image) -> PILImage.Image | str:
        try:
            return open_image(self.check(image)).convert("RGB")
        except PermissionError:
            return "not in the folders"
        except FileNotFoundError:
            return "no such file"
        except (OSError, ImageError):
            return "cannot be read"

    def _place(self, images: Sequence[Image | None]) -> Path | None:
        """Where the stack of images is kept: named by their files' paths, sizes and times, or by their values."""
        if self._folder is None:
            return None
        state = hashlib.blake2b(f"{_FORM} {TILE}".encode(), digest_size=16)
        for image in images:
            if isinstance(image, np.ndarray):
                state.update(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes())
            elif image is not None:
                try:
                    checked = self.check(image)
                    path = image_path(checked)
                    assert path is not None
                    facts = path.stat()
                except OSError:
                    return None  # it may be there next time
                state.update(f"{checked!a} {facts.st_size} {facts.st_mtime_ns}".encode())
            state.update(b"\n")
        name = state.hexdigest()
        return self._folder / name[:2] / f"{name[2:]}.jpg"


def _tiles(opened: Sequence[PILImage.Image | str | None]) -> list[PILImage.Image]:
    """Images of one size, each whole, in the shape of the first; a text stands for what cannot be shown."""
    first = next((image for image in opened if isinstance(image, PILImage.Image)), PILImage.new("RGB", (1, 1)))
    scale = TILE / max(first.size)
    size = max(1, round(first.width * scale)), max(1, round(first.height * scale))
    tiles = []
    for image in opened:
        if isinstance(image, PILImage.Image):
            tiles.append(readable(ImageOps.pad(image, size, PILImage.Resampling.LANCZOS, (128, 128, 128)))[0])
            continue
        tile = hatched(size)
        if image is not None:
            draw = ImageDraw.Draw(tile)
            for row, word in enumerate(image.split()):
                draw.text((size[0] // 2, 16 + row * (TEXT + 2)), word, WRONG, font(TEXT), anchor="ma")
        else:
            ImageDraw.Draw(tile).text((size[0] // 2, size[1] // 2), "none", GREY, font(TEXT), anchor="mm")
        tiles.append(tile)
    return tiles


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Time, size and path of what is kept."""
    found = []
    for path in folder.glob("??/*.jpg"):
        with suppress(OSError):  # another process may remove it
            facts = path.stat()
            found.append((facts.st_mtime, facts.st_size, path))
    return found


def _jpeg(image: PILImage.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
