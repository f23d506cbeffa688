"""A run that is killed again and again; started by a test: killed.py CONFTEST OUT KILLS.

Every attempt is a process of its own, forked before torch has started a thread, and dies by SIGKILL: at a moment of the
clock, in front of the given one of all steps on the disk, or half-way through a file of the given name.
"""

import importlib.util
import json
import os
import signal
import sys
import time

import torch

from nextreid import _files
from nextreid.engine import get_recipe, train
from nextreid.models import create_model


def attempt(data, out):
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)
    recipe = get_recipe("tiny", epochs=3, num_ids=3, warmup_epochs=1, eval_every=1)
    train(create_model("baseline_tiny"), data.make_dataset(), recipe, out, resume=True, progress=False)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(count):
    """Die in front of the given call that brings bytes to the disk, moves or removes something."""
    calls = []

    def counted(real):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) == count:
                die()
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    _files.exchange = counted(_files.exchange)


def die_in_write(name, count):
    """Die half-way through the given write of a file of that name."""
    real, calls = _files.write_whole, []

    def write_whole(path, write):
        def cut(temporary):
            write(temporary)
            calls.append(path)
            if len(calls) == count:
                os.truncate(temporary, os.path.getsize(temporary) // 2)
                die()

        real(path, cut if path.name == name else write)

    _files.write_whole = write_whole


def fork(data, out, kind, value):
    child = os.fork()
    if child == 0:
        try:
            if kind == "step":
                die_at_step(value)
            elif kind not in ("no", "seconds"):
                die_in_write(kind, value)
            attempt(data, out)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    if kind == "seconds":
        time.sleep(value)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main():
    spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    kills = json.loads(sys.argv[3])
    json.dump([fork(data, sys.argv[2], kind, value) for kind, value in [*kills, ["no", 0]]], sys.stdout)


if __name__ == "__main__":
    main()
