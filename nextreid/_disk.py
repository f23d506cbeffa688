"""What the system offers for writing safely: names and locks that are one writer's, and bytes and names on the disk.

A writer holds a lock file beside its temporary name. The lock dies with its process, so the next writer knows what a
dead one left, removes it, and never touches what is a living one's. On network file systems this is as good as their
locks; where there are none, temporary names are unique and leftovers stay.
"""

import errno
import itertools
import logging
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

_held: set[str] = set()  # the system's lock keeps other processes out, not other threads
_guard = threading.Lock()


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, removed at the end. It dies with the process: a file that a dead one left does not block.

    Raises:
        BlockingIOError: Another process, or another call in this one, holds it; `what` says what is in use.
    """
    make_folder(path.parent)
    held = None
    try:
        held = _lock(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _logger.warning("%s is on a disk without locks: nothing keeps a second process out", path.parent)
    else:
        if held is None:
            raise BlockingIOError(f"{what} is in use by another process; wait until it ends, or name another place")
    try:
        yield
    finally:
        if held:
            _release(held)


@contextmanager
def claim(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` that is no living writer's, and remove at the end what is there."""
    make_folder(path.parent)
    held = None
    for slot in itertools.count():
        temporary = path.with_name(f".{path.name}.{slot}.tmp")
        try:
            if held := _lock(temporary.with_suffix(".lock")):
                break
        except PermissionError:
            if not temporary.with_suffix(".lock").exists():  # else it is another user's
                raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            break
    try:
        remove(temporary)
        yield temporary
    finally:
        remove(temporary)
        if held:
            _release(held)


def sweep(folder: Path) -> None:
    """Remove what dead writers left in `folder`; what is a living one's stays."""
    for path in folder.glob(".*.lock"):
        with suppress(OSError):
            if held := _lock(path):
                remove(path.with_suffix(".tmp"))
                _release(held)


def exchange(one: Path, two: Path) -> bool:
    """Let two folders take each other's name in one step; False where the system does not offer it."""
    import ctypes

    names = os.fsencode(one), os.fsencode(two)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return library.renamex_np(*names, 2) == 0  # RENAME_SWAP
        return library.renameat2(-100, names[0], -100, names[1], 2) == 0  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):
        return False


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless there is one, and bring their names to the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring the bytes of a file, or of all files in a folder, to the disk."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
        sync_folder(path)
    else:
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems do not offer it
            raise
    finally:
        os.close(handle)


@contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Let an error of the disk name what was to be written, not a temporary file or nothing."""
    try:
        yield
    except PermissionError as error:
        if error.filename is None or os.access(path.parent, os.W_OK):
            raise
        raise PermissionError(f"cannot write {path}: {path.parent} may not be written; name another") from error
    except OSError as error:
        if error.errno is None or error.errno not in _FULL:
            raise
        raise OSError(error.errno, f"cannot write {path}: {os.strerror(error.errno)}") from error


def _lock(path: Path) -> IO[bytes] | None:
    """Lock a file, which is made if there is none; None if another process or thread holds it."""
    name = os.path.abspath(path)
    with _guard:
        if name in _held:
            return None
        _held.add(name)
    file = None
    try:
        while True:
            file = open(name, "ab")
            _lock_file(file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(name), os.fstat(file.fileno())):
                    return file
            file.close()  # who held it removed it between our two steps
    except BaseException as error:
        if file:
            file.close()
        with _guard:
            _held.discard(name)
        if file and isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return None
        raise


def _lock_file(file: IO[bytes]) -> None:
    # Not flock, which children inherit: loading processes would hold it for a while after their parent was killed.
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(held: IO[bytes]) -> None:
    if sys.platform == "win32":
        held.close()  # an open file cannot be removed there
    with suppress(OSError):
        os.unlink(held.name)
    held.close()
    with _guard:
        _held.discard(held.name)
