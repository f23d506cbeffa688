"""Writers that are killed at each of their steps, that write at once, and that lock."""

import errno
import os
import signal
import sys

import pytest

from benchmarks.reliability.processes import fork, wait
from nextreid import _disk, _files
from nextreid._disk import claim, lock, sweep
from nextreid._files import find_folder, write_folder, write_text, write_together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym", "shutil.rmtree"}


def child(act, *args):
    """Run in a process of its own; return its exit status, negative if it was killed."""
    return wait(fork(act, *args))


def killed_at(step, act):
    """Do something and die in front of the given one of its steps on the disk, as the interpreter reports them."""
    count = 0

    def before(event, _):
        nonlocal count
        count += event in STEPS
        if event in STEPS and count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    real = os.fsync
    os.fsync = lambda handle: (before("open", ()), real(handle))
    sys.addaudithook(before)
    act()


def kill_everywhere(act, check):
    """Kill `act` at each step in turn until it gets to its end, and `check` what it leaves."""
    for step in range(1, 500):
        status = child(killed_at, step, act)
        check()
        if status == 0:
            return step
        assert status == -signal.SIGKILL
    raise AssertionError("it never ends")


def fill(folder, text):
    for name in ("one", "two"):
        (folder / name).write_text(text)


def texts(folder):
    return {(folder / name).read_text() for name in ("one", "two")}


def test_a_file_is_whole_whenever_its_writer_is_killed(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old" * 9000)

    def check():
        assert path.read_text() in ("old" * 9000, "new" * 9000)

    assert kill_everywhere(lambda: write_text(path, "new" * 9000), check) > 8
    write_text(path, "last")
    assert os.listdir(tmp_path) == ["file"]  # the dead ones' leftovers are gone


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_whole_whenever_its_writer_is_killed(tmp_path, monkeypatch, at_once):
    if not at_once:
        monkeypatch.setattr(_files, "exchange", lambda *_: False)
    target = tmp_path / "last"

    def write(text):
        with write_folder(target) as fresh:
            fill(fresh, text)

    def check():
        assert at_once is False or target.is_dir()
        assert len(texts(find_folder(target))) == 1

    write("old")
    assert kill_everywhere(lambda: write("new"), check) > 15
    assert texts(target) == {"new"}
    write("last")
    assert os.listdir(tmp_path) == ["last"] and texts(target) == {"last"}


def test_no_kill_leaves_files_of_two_writers(tmp_path):
    def write(text):
        with write_together(tmp_path, ("one", "two")) as fresh:
            fill(fresh, text)

    seen = set()

    def check():
        if (tmp_path / "two").exists():  # it vouches for the other
            assert len(texts(tmp_path)) == 1
        seen.add((tmp_path / "two").exists())
        write("old")

    write("old")
    assert kill_everywhere(lambda: write("new"), check) > 15
    assert seen == {True, False} and sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_sweeping_takes_what_the_dead_left_and_nothing_else(tmp_path):
    write_text(tmp_path / "file", "old")
    for step in (9, 10, 11):
        child(killed_at, step, lambda: write_text(tmp_path / "file", "new"))

    def make_and_die():
        with claim(tmp_path / "folder") as temporary:
            temporary.mkdir()
            os.kill(os.getpid(), signal.SIGKILL)

    child(make_and_die)
    assert {".file.0.lock", ".folder.0.lock", ".folder.0.tmp"} <= set(os.listdir(tmp_path))
    with claim(tmp_path / "living") as temporary:
        temporary.write_text("half")
        assert child(sweep, tmp_path) == 0  # another process leaves it alone
        sweep(tmp_path)  # and so does this one
        assert sorted(os.listdir(tmp_path)) == [".living.0.lock", ".living.0.tmp", "file"]
    assert os.listdir(tmp_path) == ["file"]


def test_writers_at_once_have_names_of_their_own(tmp_path):
    with claim(tmp_path / "file") as one, claim(tmp_path / "file") as two:
        assert one != two

        def third():
            with claim(tmp_path / "file") as three:
                assert three not in (one, two)

        assert child(third) == 0
        write_text(tmp_path / "file", "whole")
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_keeps_others_out_and_dies_with_its_process(tmp_path):
    path = tmp_path / "run" / ".lock"

    def take():
        with lock(path, "the run"):
            pass

    def take_and_die():
        with lock(path, "the run"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert child(take_and_die) == -signal.SIGKILL and path.exists()
    with lock(path, "the run"):
        assert child(take) == 1
        with pytest.raises(BlockingIOError, match="the run is in use"):
            take()
    assert not path.exists() and child(take) == 0
    take()


def test_a_lock_is_not_handed_to_children(tmp_path):
    """Loading processes outlive a killed training for a while."""
    path, (reads, writes) = tmp_path / ".lock", os.pipe()

    def train():
        with lock(path, "the run"):
            if os.fork() == 0:
                os.close(writes)
                os.read(reads, 1)  # until the test is done
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert child(train) == -signal.SIGKILL
    with lock(path, "the run"):
        pass
    os.close(writes)
    os.close(reads)


def test_a_disk_without_locks_still_gives_names_of_their_own(tmp_path, monkeypatch, caplog):
    def none(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_disk, "_lock_file", none)
    with claim(tmp_path / "file") as one, claim(tmp_path / "file") as two:
        assert one != two
    with lock(tmp_path / ".lock", "the run"):
        write_text(tmp_path / "file", "whole")
    assert "without locks" in caplog.text and (tmp_path / "file").read_text() == "whole"


def test_a_place_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def refuse(path, _):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(_disk, "open", refuse, raising=False)  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"cannot write .*file: .* may not be written"):
        write_text(tmp_path / "file", "x")
