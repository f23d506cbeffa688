"""Work in forked processes, which may be killed."""

import os
import sys
from collections.abc import Callable
from typing import Any


def fork(work: Callable[..., object], *args: Any) -> int:
    """Start work in a process of its own; return that process's number."""
    child = os.fork()
    if child == 0:
        try:
            work(*args)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def wait(child: int) -> int:
    """Wait for the end of a process; return its exit status, negative if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
