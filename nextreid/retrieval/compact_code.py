"""A compact code of vectors that proposes which of them to compare: their principal components about the mean.

It is a cache beside the vectors, made again where it is missing or damaged, and never has the last word.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nextreid._files import read_tensors, write_tensors

from .distance import TILE, Tile, as_float32

COMPONENTS = 128
"""Numbers of a code, float16."""
_SAMPLE = 16_384  # vectors that the components are found on
_logger = logging.getLogger(__name__)


class CompactCode:
    """Codes of the full files of a gallery.

    The components are found on a sample of the first ``2^n`` files, and again when there are twice as many. What is
    computed goes into files beside the vectors where that is possible, for the next process.

    Args:
        folder: Of the gallery.
        generation: Of its files.
        files: How many are full.
        width: Numbers of a vector.
    """

    def __init__(self, folder: Path, generation: int, files: int, width: int) -> None:
        self._fit = 1 << (files.bit_length() - 1)
        self._folder, self._generation, self._width = folder, generation, width
        self._mean = self._basis = torch.empty(0)
        self._codes: list[Tensor] = []

    def fits(self, generation: int, files: int) -> bool:
        """Whether it can code this many files of a generation."""
        return generation == self._generation and self._fit <= files < 2 * self._fit

    def extend(self, segments: Sequence[np.ndarray]) -> None:
        """Code the files ``(n, W)`` that have none yet."""
        if not len(self._basis):
            found = self._read("basis")
            if not found:
                found = _principal(segments[: self._fit], self._width)
                self._write("basis", found)
            self._mean, self._basis = found["mean"], found["basis"]
        for number in range(len(self._codes), len(segments)):
            found = self._read(f"{number:05d}")
            if not found:
                found = {"code": self._encode(segments[number])}
                self._write(f"{number:05d}", found)
            self._codes.append(found["code"])

    def queries(self, queries: Tensor) -> Tensor:
        """Return what is compared with the codes: ``(Q, F)`` queries along the components ``(Q, C)``.

        For a unit query q and a vector g = mean + basis z + rest, q.g is q.mean + (q.basis).z and what the rest adds.
        """
        return torch.nn.functional.normalize(queries, dim=1) @ self._basis

    def tiles(self) -> Iterator[Tile]:
        """Yield the codes as tiles, in the order of the vectors."""
        buffer, start = torch.empty(TILE, self._basis.shape[1]), 0
        for code in self._codes:
            for rows in code.split(TILE):
                yield Tile(start, len(rows), rows, buffer=buffer)
                start += len(rows)

    def _encode(self, rows: np.ndarray) -> Tensor:
        parts = (as_float32(rows[i : i + TILE, : self._width]) for i in range(0, len(rows), TILE))
        return torch.cat([((part - self._mean) @ self._basis).half() for part in parts])

    def _file(self, name: str) -> Path:
        return self._folder / f"code-{self._generation:05d}-{self._fit:05d}-{name}.safetensors"

    def _read(self, name: str) -> dict[str, Tensor]:
        try:
            return read_tensors(self._file(name))[0]
        except FileNotFoundError:
            return {}
        except ValueError as error:
            _logger.warning("%s; it is made again", error)
            return {}

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        try:
            write_tensors(self._file(name), tensors, {})
        except OSError as error:
            _logger.info("the compact code is not kept: %s", error)


def _principal(segments: Sequence[np.ndarray], width: int) -> dict[str, Tensor]:
    """Return the mean ``(F,)`` and the principal components ``(F, C)`` of a sample of vectors, evenly taken."""
    step = max(1, sum(map(len, segments)) // _SAMPLE)
    rows = torch.cat([as_float32(np.ascontiguousarray(rows[::step, :width])) for rows in segments])
    mean = rows.mean(dim=0)
    centred = rows - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return {"mean": mean, "basis": vectors[:, -min(COMPONENTS, width) :].contiguous()}
