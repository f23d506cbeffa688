"""Progress for terminals and for files: never a carriage return where nothing moves."""

import itertools
import sys

import pytest

from nextreid.engine import EmbedOptions, evaluate, progress


@pytest.fixture
def bar(monkeypatch):
    monkeypatch.setattr(progress, "_LEAST", 1e-9)
    return lambda **options: progress.progress_bar(range(5), "embed", "batch", **options)


def test_lines_in_a_pipe(bar, capsys):
    for _ in bar(shown=True):
        pass
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and err.endswith("\n")
    assert [line.partition(", ")[0] for line in err.splitlines()] == [f"embed: {n} of 5" for n in range(1, 6)]


def test_a_counter_shows_what_it_is_told(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LEAST", 1e-9)
    with progress.progress_counter("rank", "query", shown=True) as count:
        count(3, 9)
        count(9, 9)
    assert [line.partition(", ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "rank: 3 of 9",
        "rank: 9 of 9",
    ]


@pytest.mark.parametrize("shown", [True, False])
def test_ranking_and_the_look_at_images_are_shown(build, dataset, monkeypatch, capsys, shown):
    monkeypatch.setattr(progress, "_LEAST", 1e-9)
    evaluate(build("baseline_tiny"), dataset, on_error="skip", options=EmbedOptions(progress=shown))
    err = capsys.readouterr().err
    assert [f"{what}: " in err for what in ("look at images", "embed", "rank")] == [shown] * 3


def test_a_bar_on_a_terminal(bar, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = bar(shown=True)
    shown.refresh()
    shown.close()
    assert "\rembed" in capsys.readouterr().err


def test_lines_come_ever_less_often(monkeypatch, capsys):
    """Two seconds after the first line, then 4, 8, ... and at most a minute: some seventy lines an hour."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = progress._Lines()
    for second in range(1, 3600):
        clock[0] = float(second)
        lines.write(f"\r{second}")
    shown = [int(line) for line in capsys.readouterr().err.split()]
    gaps = [b - a for a, b in itertools.pairwise(shown)]
    assert gaps[:6] == [2, 4, 8, 16, 32, 60] and set(gaps[6:]) == {60}


@pytest.mark.parametrize("shown", [True, False])
def test_short_work_and_unasked_progress_show_nothing(shown, capsys):
    assert list(progress.progress_bar(range(3), "x", "step", shown=shown)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
