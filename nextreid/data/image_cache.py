"""Every image decoded once: a cache of uint8 pixels that loading reads instead of the files."""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from .._files import map_tensor, write_tensor_bytes
from ..version import __version__
from .image import Image, ImageFile, image_path, open_image, open_images
from .sample import Sample, check_counts
from .transforms import EvalTransform

_logger = logging.getLogger(__name__)

SUFFIX = ".store"
_SHARED = Path("/dev/shm")
_CHUNK = 64  # samples that are decoded ahead of the one that is kept
_ALIGN = 4096


class ImageCache:
    """The distinct images of some samples at the input size of a model, 3 H W bytes each.

    Made by `build`, in memory or in a file. Reading from it gives the very numbers that decoding gives. Worker
    processes share its pixels: pickling copies none.

    An image is known by its path, box, declared size and window, an array by its values. Files that change while a
    cache is in memory are not noticed; a cache in a file is checked each time it is opened.

    Attributes:
        pixels: ``(n, 3, H, W)`` uint8, one row for each distinct image.
        img_size: ``(H, W)`` in pixels.
        interpolation: How the images were resized.
        resize: By which library.
        path: The file, None in memory.
    """

    def __init__(
        self,
        pixels: Any,
        places: dict[str, int],
        transform: EvalTransform,
        path: Path | None = None,
        digest: str | None = None,
    ) -> None:
        self._shared, self._places, self._digest = pixels, places, digest
        self.pixels: np.ndarray = np.asarray(pixels)
        self.img_size = transform.img_size
        self.interpolation = transform.interpolation
        self.resize = transform.resize
        self.path = path

    @classmethod
    def build(
        cls,
        samples: Sequence[Sample],
        modalities: Sequence[str],
        transform: EvalTransform,
        *,
        file: str | Path | None = None,
        max_bytes: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> ImageCache:
        """Decode and resize every distinct image of `samples` once, in threads.

        Args:
            samples: Samples with one image per modality. Missing ones stay missing.
            modalities: Names of the images, in their order.
            transform: Gives the input size and how to resize; a cache serves every transform that shares these.
            file: Where to keep the pixels, a name that ends in ``.store``; None keeps them in memory. A file that
                holds just these images is read, any other is rebuilt: other images, another size or way of resizing,
                image files of another length or time of change, other versions of the software, or damaged bytes.
                The log gives the reason. The file is safetensors with one tensor ``pixels``. Of an image file two
                times count: that of its content, which copying may preserve, and that of the system, which changes
                with every write, copy, ``chmod`` and link; Windows has only the first and that of its creation.
            max_bytes: Most bytes that the pixels may take; None sets no limit.
            progress: Called with the number of images decoded and of all images.

        Returns:
            The cache.

        Raises:
            ValueError: If an image cannot be read (names the file, the sample and the modality), there is none, a
                sample has another number of them than there are modalities, the pixels take more than `max_bytes` or
                than the memory that processes can share, or `file` is not the name of a cache.
            OSError: If the disk is full or cannot be written; a cache that was there before stays.
        """
        path = None if file is None else Path(file)
        if path is not None and (path.suffix != SUFFIX or path.is_dir()):
            raise ValueError(f"an image cache is kept in a file whose name ends in {SUFFIX}, got {str(path)!r}")
        check_counts(samples, modalities)
        places, jobs = _distinct(samples)
        if not places:
            raise ValueError("there is no image to cache: the samples have none")
        shape = (len(places), 3, *transform.img_size)
        size = math.prod(shape)
        images = _counted(_decoded(jobs, modalities, transform), len(places), progress)
        takes = f"{len(places)} images of {shape[2]} x {shape[3]} pixels take {_readable(size)}"
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"{takes}, more than max_bytes={max_bytes}: allow more, or do without a cache")
        if path is None:
            if _SHARED.is_dir() and size > (free := shutil.disk_usage(_SHARED).free):
                raise ValueError(
                    f"{takes}, but {_SHARED}, the memory that processes share, has {_readable(free)} left: make it "
                    f"larger (docker: --shm-size), or keep the cache in a file whose name ends in {SUFFIX}"
                )
            _logger.info("image cache in memory: %s", takes)
            pixels = torch.empty(shape, dtype=torch.uint8).share_memory_()
            for row, image in enumerate(images):
                pixels[row] = torch.from_numpy(image)
            return cls(pixels, places, transform)
        metadata = _metadata(jobs, modalities, transform)
        try:
            pixels, digest = _open(path, shape, metadata)
            _logger.info("image cache %s: %s, read from the file", path, takes)
            return cls(pixels, places, transform, path, digest)
        except FileNotFoundError:
            _logger.info("image cache %s: %s", path, takes)
        except ValueError as reason:
            _logger.warning("image cache %s is rebuilt, %s: %s", path, reason, takes)
        try:
            digest = _write(path, shape, metadata, images)
        except OSError as error:
            raise OSError(error.errno, f"cannot write the image cache {path}, {takes}: {error.strerror}") from error
        return cls(map_tensor(path, digest)[0], places, transform, path, digest)

    def __repr__(self) -> str:
        return f"ImageCache({len(self)} images of {self.img_size}, {self.path or 'in memory'})"

    def __len__(self) -> int:
        """Return the number of distinct images."""
        return len(self.pixels)

    def rows(self, samples: Sequence[Sample], modalities: Sequence[str]) -> np.ndarray:
        """Return where the images of `samples` are, ``(B, M)`` int64, -1 where one is missing; KeyError if unknown."""
        out = np.empty((len(samples), len(modalities)), dtype=np.int64)
        for number, sample in enumerate(samples):
            for index, (image, modality) in enumerate(zip(sample.images, modalities, strict=True)):
                row = -1 if image is None else self._places.get(_identity(image))
                if row is None:
                    raise KeyError(
                        f"the image cache has no {modality} image of sample {sample.key!r}: "
                        "build it with all samples that are loaded from it"
                    )
                out[number, index] = row
        return out

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy images to `out`, ``(..., 3, H, W)`` uint8 for rows ``(...)``; zeros for -1."""
        np.take(self.pixels, rows, axis=0, out=out, mode="clip")
        if (missing := rows < 0).any():
            out[missing] = 0

    def check(self, transform: EvalTransform) -> None:
        """Raise ValueError unless a transform reads images of this size that are resized alike."""
        ours, theirs = ((of.img_size, of.interpolation, of.resize) for of in (self, transform))
        if ours != theirs:
            raise ValueError(f"the image cache holds images of {ours}, the transform takes {theirs}: build it with it")

    def __getstate__(self) -> dict[str, Any]:
        # the shared tensor goes as a handle, a file as its name
        return {**self.__dict__, "pixels": None, "_shared": None if self.path else self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.pixels = map_tensor(self.path, self._digest)[0] if self.path else self._shared.numpy()


# a sample's key and its images, None for those that are missing or belong to a sample before it
_Job = tuple[str, list[Image | None]]


def _distinct(samples: Sequence[Sample]) -> tuple[dict[str, int], list[_Job]]:
    """Return the row of each distinct image, and the images to decode in the order of the rows."""
    places: dict[str, int] = {}
    jobs: list[_Job] = []
    for sample in samples:
        new: list[Image | None] = [None] * len(sample.images)
        for index, image in enumerate(sample.images):
            if image is not None and (name := _identity(image)) not in places:
                places[name], new[index] = len(places), image
        if any(image is not None for image in new):
            jobs.append((sample.key, new))
    return places, jobs


def _identity(image: Image) -> str:
    if isinstance(image, np.ndarray):
        values = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        return f"array {image.shape} {image.dtype} {values}"
    file = image if isinstance(image, ImageFile) else ImageFile(image)
    return ascii((os.path.abspath(file.path), file.box, file.size, file.window))


def _decoded(jobs: Sequence[_Job], modalities: Sequence[str], transform: EvalTransform) -> Iterator[np.ndarray]:
    """Yield the images in the order of their rows."""

    def decode(job: _Job) -> list[np.ndarray]:
        key, images = job
        return [transform.pixels(image) for image in open_images(images, key, modalities) if image is not None]

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for start in range(0, len(jobs), _CHUNK):
            for images in pool.map(decode, jobs[start : start + _CHUNK]):
                yield from images


def _counted(
    images: Iterator[np.ndarray], total: int, progress: Callable[[int, int], object] | None
) -> Iterator[np.ndarray]:
    for done, image in enumerate(images, start=1):
        yield image
        if progress is not None:
            progress(done, total)


def _metadata(jobs: Sequence[_Job], modalities: Sequence[str], transform: EvalTransform) -> dict[str, Any]:
    """Return what a file must record to be the cache of these images."""
    state = hashlib.blake2b(digest_size=16)
    for key, images in jobs:
        for image, modality in zip(images, modalities, strict=True):
            if image is None:
                continue
            state.update(ascii(_identity(image)).encode())
            if path := image_path(image):
                try:
                    stat = path.stat()
                except OSError:
                    open_image(image, key, modality)  # raises an error that names the sample
                    raise
                # Copying may preserve the second; the third is the system's own (on Windows, of the file's creation).
                state.update(f" {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode())
    return {
        "images": state.hexdigest(),
        "img_size": list(transform.img_size),
        "interpolation": transform.interpolation,
        "resize": "pillow" if transform.resize == "pillow" else f"torch {torch.__version__}",
        "nextreid": __version__,
        "pillow": PIL.__version__,
    }


def _write(path: Path, shape: Sequence[int], metadata: dict[str, Any], images: Iterator[np.ndarray]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if math.prod(shape) + _ALIGN > (free := shutil.disk_usage(path.parent).free):
        raise OSError(errno.ENOSPC, f"the disk has {_readable(free)} left")
    chunks = (np.ascontiguousarray(image).reshape(-1).data for image in images)
    return write_tensor_bytes(path, {"pixels": ("uint8", shape)}, chunks, metadata, _ALIGN)


def _open(path: Path, shape: Sequence[int], metadata: dict[str, Any]) -> tuple[np.ndarray, str]:
    """Return the pixels of a file that is the cache described; a ValueError gives the reason why it is not."""
    pixels, recorded, digest = map_tensor(path)
    if changed := [name for name in metadata if recorded.get(name) != metadata[name]]:
        raise ValueError(f"it was made with other {', '.join(changed)}")
    if pixels.shape != shape:
        raise ValueError(f"it holds {pixels.shape[0]} images")
    return pixels, digest


def _readable(size: int) -> str:
    return f"{size} bytes ({size / 2**30:.2f} GiB)"
