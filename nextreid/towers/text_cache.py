"""Features of texts, each computed once: a bounded cache in memory, and a file that keeps it between runs."""

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .._files import read_header, read_tensors, write_tensors

_MARK = "text cache"  # in the metadata of one

_logger = logging.getLogger(__name__)


class TextFeatureCache:
    """Rows ``(n, D)`` by text, in one tensor that grows as they come, up to `max_bytes`.

    When it is full, the newest rows take the place of the oldest. A file may keep the rows from run to run: it is a
    cache: trouble with it is logged and never stops a run. A copy of a cache starts empty and without a file.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._path: Path | None = None
        self.clear()

    def clear(self) -> None:
        """Forget every row; a file is read again when it is next needed."""
        self._slots: OrderedDict[str, int] = OrderedDict()  # the oldest first
        self._rows: Tensor | None = None
        self._read = self._news = False

    def __reduce__(self) -> tuple[type["TextFeatureCache"], tuple[int]]:
        return TextFeatureCache, (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, text: str) -> bool:
        return text in self._slots

    @property
    def texts(self) -> list[str]:
        """All texts, the oldest first."""
        return list(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take, the room for rows to come included."""
        return 0 if self._rows is None else self._rows.nbytes

    def look_up(self, texts: Sequence[str]) -> Tensor:
        """Rows ``(n, D)`` of at least one text, all of them in the cache."""
        slots = torch.tensor([self._slots[text] for text in texts])
        assert self._rows is not None
        return self._rows.index_select(0, slots.to(self._rows.device))

    def add(self, texts: Sequence[str], rows: Tensor) -> None:
        """Keep the rows ``(n, D)`` of n distinct texts that are not in the cache."""
        limit = self.max_bytes // rows[0].nbytes if texts else 0
        if not limit:
            return
        texts, rows, self._news = texts[-limit:], rows[-limit:], True
        total = len(self) + len(texts)
        storage = self._room(min(limit, total), limit, rows)
        try:
            slots = [*range(len(self), min(limit, total))]
            slots += [self._slots.popitem(last=False)[1] for _ in range(total - limit)]
            storage.index_copy_(0, torch.tensor(slots, device=storage.device), rows.to(storage))
            self._slots.update(zip(texts, slots, strict=True))
        except BaseException:  # half a change would give a text the row of another
            self.clear()
            raise

    def open(self, path: str | os.PathLike[str]) -> None:
        """Name the file; `load` reads it, and `save` writes it."""
        place = Path(path)
        if place.suffix != ".safetensors" or place.is_dir():
            raise ValueError(f"a text cache is a file whose name ends in .safetensors, got {str(place)!r}")
        kept = {_MARK: 1}
        with contextlib.suppress(OSError, ValueError):  # what is damaged is reported when it is read
            kept = read_header(place).metadata
        if _MARK not in kept:
            raise ValueError(f"{place} holds other tensors, not a text cache: give another name")
        self._path, self._read, self._news = place, False, len(self) > 0

    def load(self, provenance: Callable[[], Mapping[str, str]], device: torch.device) -> None:
        """Add the file's rows of this `provenance`, on `device`, unless this was done or there is no file."""
        if self._path is None or self._read:
            return
        self._read, news = True, self._news
        texts, rows = self._stored(self._path, provenance(), "is not read")
        new = [i for i, text in enumerate(texts) if text not in self]
        self.add([texts[i] for i in new], rows[new].to(device))
        self._news = news
        _logger.info("text cache %s: %d texts read", self._path, len(texts))

    def save(self, provenance: Callable[[], Mapping[str, str]]) -> bool:
        """Write the rows to the file, with those that it got meanwhile, if there are any new ones; return whether it
        holds all rows now. If it cannot be written, a warning is logged and what was there stays.
        """
        if self._path is None:
            return False
        if not self._news or self._rows is None:
            return True
        recorded, own = provenance(), self.texts
        rows = self.look_up(own).cpu()
        texts, stored = self._stored(self._path, recorded, "is replaced")
        others = [i for i, text in enumerate(texts) if text not in self]
        others = others[max(0, len(others) - (self.max_bytes // rows[0].nbytes - len(own))) :]
        try:
            write_cache(self._path, recorded, [texts[i] for i in others] + own, torch.cat([stored[others], rows]))
        except OSError as error:
            _logger.warning("the text cache is not saved: %s", error)
            return False
        self._news = False
        return True

    def _stored(self, path: Path, provenance: Mapping[str, str], otherwise: str) -> tuple[list[str], Tensor]:
        """What the file holds of this provenance; nothing if there is no file, with a warning if it is of no use."""
        try:
            return read_cache(path, provenance)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            _logger.warning("the text cache %s %s: %s", path, otherwise, error)
        return [], torch.empty(0)

    def _room(self, count: int, limit: int, like: Tensor) -> Tensor:
        """Storage for at least `count` rows; it grows by an eighth, so that little lies idle."""
        old = like[:0] if self._rows is None else self._rows
        if count > len(old):
            # A tensor made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                self._rows = like.new_empty(min(limit, max(count, len(old) + len(old) // 8)), like.shape[1])
                self._rows[: len(old)] = old
            return self._rows
        return old


def read_cache(path: Path, provenance: Mapping[str, str]) -> tuple[list[str], Tensor]:
    """Read what `write_cache` wrote, unless it is of another provenance: n texts and their rows ``(n, D)``."""
    tensors, metadata = read_tensors(path)
    if _MARK not in metadata:
        raise ValueError("it holds other tensors")
    made = metadata["provenance"]
    differs = [
        f"{name} {made.get(name)!r}, not {value!r}" for name, value in provenance.items() if made.get(name) != value
    ]
    if differs:
        raise ValueError(f"it was made with {'; '.join(differs)}")
    return metadata["texts"], tensors["rows"]


def write_cache(path: Path, provenance: Mapping[str, str], texts: Sequence[str], rows: Tensor) -> None:
    """Write the rows ``(n, D)`` of n texts, whole or not at all, with what they depend on besides the text."""
    write_tensors(path, {"rows": rows}, {_MARK: 1, "provenance": dict(provenance), "texts": list(texts)})
