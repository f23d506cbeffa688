"""A gallery whose writer is killed again and again; started by a test: killed_gallery.py FOLDER KILLS SEED.

Each writer is a process of its own. It goes on where the last one was killed, with the same endless list of changes,
and writes a byte to a pipe after each. What is found after a kill must be the state after the acknowledged changes, or
after the one more that was under way.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from nextreid.retrieval import Gallery

WIDTH = 32


def vector(number):
    return np.random.default_rng(number).standard_normal(WIDTH).astype(np.float32)


def change(number, table):
    """The change of a number and the table after it: from key to the vector's number and the identity."""
    rng, table = random.Random(number), dict(table)
    kind = rng.choice(["add", "add", "add", "many", "delete", "replace", "merge", "compact"])
    names = sorted({name for _, name in table.values()})
    if not table or kind in ("add", "many"):
        new = {f"k{number}.{i}": (1000 * number + i, f"p{rng.randrange(4)}") for i in range(1 + 40 * (kind == "many"))}
        return ("add", new), {**table, **new}
    if kind == "replace":
        new = {key: (1000 * number, "new") for key in rng.sample(sorted(table), 1)}
        kept = {key: value for key, value in table.items() if key not in new}
        return ("add", new), {**kept, **new}
    if kind == "delete":
        name = rng.choice(names)
        return ("delete", name), {key: value for key, value in table.items() if value[1] != name}
    if kind == "merge":
        old, into = rng.choice(names), rng.choice(names)
        return ("merge", (old, into)), {k: (v, into if name == old else name) for k, (v, name) in table.items()}
    return ("compact", None), table


def write(folder, number, table, pipe):
    with Gallery(folder, write=True) as gallery:
        while True:
            (kind, what), table = change(number, table)
            if kind == "add":
                entries = [{"key": key, "identity": name} for key, (_, name) in what.items()]
                gallery.add(np.stack([vector(seed) for seed, _ in what.values()]), entries, replace=True)
            elif kind == "delete":
                gallery.delete(identity=what)
            elif kind == "merge":
                gallery.merge_identities(*what)
            else:
                gallery.compact()
            number += 1
            os.write(pipe, b".")


def read(folder, table):
    """Whether a reader finds a table, every vector whole."""
    with Gallery(folder) as gallery:
        assert gallery.verify() == []
        found = {entry.key: entry.identity for entry in gallery.entries()}
        if list(found.items()) != [(key, name) for key, (_, name) in table.items()]:
            return False
        if table:
            rows = np.stack([vector(seed) for seed, _ in table.values()])
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            if np.abs(gallery.vectors(list(table)) - unit).max() >= 1e-3:  # the last change may be of a vector alone
                return False
            assert gallery.search(unit[0], k=1)[0].entry.key in table
        return True


def main():
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    Gallery.create(folder, WIDTH).close()
    rng, number, table, done = random.Random(seed), 0, {}, 0
    for _ in range(kills):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(ours)
                write(folder, number, table, theirs)
            except BaseException as error:
                sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os.close(theirs)
        if rng.random() < 0.8:  # else while it opens the gallery, on most machines
            select.select([ours], [], [], 60)  # its first change is done
        time.sleep(rng.uniform(0.005, 0.25))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with os.fdopen(ours, "rb") as pipe:
            acknowledged = len(pipe.read())
        done += acknowledged
        for _ in range(acknowledged):
            _, table = change(number, table)
            number += 1
        if not read(folder, table):
            _, table = change(number, table)
            number += 1
            assert read(folder, table), f"after {number} changes the gallery is neither before nor after the last one"
    json.dump({"kills": kills, "changes": done, "entries": len(table)}, sys.stdout)


if __name__ == "__main__":
    main()
