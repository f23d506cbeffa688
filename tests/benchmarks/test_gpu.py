"""The benchmark of the GPU's goals, where there is no GPU: its rows, and its goals in their smallest form."""

import multiprocessing
import time

import pytest
import torch

from benchmarks.speed import gpu, gpu_model
from benchmarks.speed.gpu_rig import COLUMNS, Rig, Timing, check, guarded

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it runs at full size")


@pytest.fixture
def rig():
    """One that believes in a GPU: rows are held against their targets."""
    made = Rig(time.monotonic() + 60)
    made.gpu = True
    return made


def test_a_time_is_met_from_below_and_its_ratio_is_how_much_shorter(rig):
    row = rig.row(
        "P20", "K1", "B 64", "ms", Timing(2, 1, 3), "other", Timing(6, 5, 7), 1.0, bound=2, ratio=3, of_floor=2
    )
    assert tuple(row) == COLUMNS
    assert (row["ours"], row["ours_20"], row["ours_80"]) == (2, 1, 3)
    assert (row["theirs"], row["theirs_20"], row["theirs_80"]) == (6, 5, 7)
    assert (row["ratio"], row["x_of_floor"], row["met"]) == (3, 2, True)
    assert row["target"] == "<= 2, ratio >= 3, <= 2 x floor"


@pytest.mark.parametrize("aim", [{"bound": 1.9}, {"ratio": 3.1}, {"of_floor": 1.9}])
def test_one_target_that_is_missed_is_enough(rig, aim):
    aims = {"bound": 2, "ratio": 3, "of_floor": 2, **aim}
    assert rig.row("P20", "K1", "", "ms", 2.0, "other", 6.0, 1.0, **aims)["met"] is False


def test_of_a_rate_more_is_better(rig):
    rate = Timing(0.5, 0.25, 1.0).rate(100)
    assert rate == Timing(200, 100, 400)
    row = rig.row("P17", "step", "", "samples/s", rate, "other", 50.0, 400.0, bound=200, ratio=4, of_floor=2)
    assert (row["ratio"], row["x_of_floor"], row["met"]) == (4, 2, True)
    assert rig.row("P17", "step", "", "samples/s", rate, bound=201)["met"] is False


def test_without_a_gpu_goals_stay_open_and_without_a_target_nothing_is_met(rig):
    assert rig.row("P17", "step", "", "samples/s", 1.0)["met"] == ""
    rig.gpu = False
    assert rig.row("P17", "step", "", "samples/s", 1e9, bound=1300)["met"] == "open: no GPU"


def test_results_may_be_off_twice_as_far_as_the_plain_form():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert "1.9e-01" in check("it", [exact * 1.19], [exact * 1.1], [exact])
    for wrong in (exact * 1.21, exact * float("nan")):
        with pytest.raises(ValueError, match="tensor 1"):
            check("it", [exact, wrong], [exact, exact * 1.1], [exact, exact])


def test_a_failure_is_a_row_after_those_that_came_before():
    def rows():
        yield {"goal": "P19"}
        raise RuntimeError("out of\n memory")

    first, last = guarded("P19", "K2", rows())
    assert first == {"goal": "P19"}
    assert (last["what"], last["note"]) == ("K2", "failed: RuntimeError: out of memory")


def test_events_time_each_call_alone_behind_a_sweep(rig, monkeypatch):
    clock, told = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")
            self.at = clock[0]

        def elapsed_time(self, other):
            return other.at - self.at  # milliseconds

    def code(name, ms):
        told.append(name)
        clock[0] += ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("wait"))
    monkeypatch.setattr(Rig, "_sweep", lambda self: told.append("sweep"))
    fast, slow = rig.time(lambda: code("fast", 2.0), lambda: code("slow", 5.0))
    assert fast == Timing(0.002, 0.002, 0.002) and slow == Timing(0.005, 0.005, 0.005)
    turn = ["sweep", "event", "fast", "event", "sweep", "event", "slow", "event"]
    assert told[-17:] == [*turn, *turn, "wait"]


def test_memory_is_what_a_call_takes_on_top_of_what_is_held(rig, monkeypatch):
    held = {"now": 2**30, "most": 2**35}

    def code():
        held["most"] = max(held["most"], held["now"] + 2**31)

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(most=held["now"]))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert rig.peak(code) == 2.0
    assert rig.most_memory() == 32.0  # what was taken before is not forgotten


@pytest.mark.parametrize(
    "goal, seconds, told",
    [("P17", -1.0, "skipped"), ("P17", 0.05, "cut off"), ("no such goal", 60.0, "exit code 1")],
)
def test_a_goal_that_has_no_time_or_dies_is_told(goal, seconds, told):
    (row,) = gpu._apart(gpu.processes(), goal, time.monotonic() + seconds)
    assert told in row["note"]
    assert not multiprocessing.active_children()


def test_a_recompiled_step_is_told():
    compiled = torch.compile(lambda x: x + 1, backend="aot_eager", dynamic=False)
    compiled(torch.zeros(2))
    sizes = iter([2, 2, 3, 3])
    rows = gpu_model._no_recompilation(Rig(0.0), lambda: compiled(torch.zeros(next(sizes))), 2, "")
    (row,) = guarded("P24", "recompilation", rows)
    assert row["note"].startswith("failed: RuntimeError")


def measured(*goals):
    rows = list(gpu.run(goals))
    assert all(tuple(row) == COLUMNS for row in rows)
    assert not [row for row in rows if row["note"].startswith(("failed", "cut off"))]
    assert [row["goal"] for row in rows if row["what"] == "all of it"] == list(goals)
    return rows


def test_ranking_and_a_run_in_their_smallest_form():
    rows = measured("ceilings", "P22", "P22, MSMT17", "P23")
    assert len(rows) == 2 + 4 + 1 + 2 + 4
    assert {row["met"] for row in rows if row["target"]} == {"open: no GPU"}


@pytest.mark.slow
@pytest.mark.parametrize("goal, count", [("P17", 6), ("P18", 5), ("P19", 6), ("P20", 7), ("P21", 10), ("P24", 8)])
def test_every_goal_runs_in_its_smallest_form(goal, count):
    assert len(measured(goal)) == count
