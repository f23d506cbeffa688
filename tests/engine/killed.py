"""A run that is killed again and again; started by a test: killed.py CONFTEST OUT KILLS.

Every attempt is a process of its own, forked before torch has started a thread, and dies by SIGKILL: at a moment of the
clock, or at a given call of ``os.replace`` or of a write, so that files are cut as well.
"""

import importlib.util
import json
import os
import signal
import sys
import time

import safetensors.torch
import torch

from nextreid.engine import get_recipe, train
from nextreid.models import _hub, create_model


def attempt(data, out):
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)
    recipe = get_recipe("tiny", epochs=3, num_ids=3, warmup_epochs=1, eval_every=1)
    train(create_model("baseline_tiny"), data.make_dataset(), recipe, out, resume=True, progress=False)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_replace(count):
    """Die in front of the given call that puts a finished file or folder in its place."""
    real, calls = os.replace, []

    def replace(*args):
        calls.append(args)
        if len(calls) == count:
            die()
        real(*args)

    os.replace = replace


def die_in_write(module, count):
    """Die half-way through the given tensor file."""
    real, calls = module.save_file, []

    def save_file(tensors, path, *args, **kwargs):
        real(tensors, path, *args, **kwargs)
        calls.append(path)
        if len(calls) == count:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    module.save_file = save_file


def fork(data, out, kind, value):
    child = os.fork()
    if child == 0:
        try:
            if kind == "replace":
                die_at_replace(value)
            elif kind in ("state", "model"):
                die_in_write({"state": safetensors.torch, "model": _hub}[kind], value)
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
