"""Progress for terminals and for files: never a carriage return where nothing moves."""

import sys

import numpy as np
import pytest

from nextreid import _progress as progress
from nextreid.cli import main
from nextreid.data import EvalTransform, ImageCache, load_dataset
from nextreid.engine import EmbedOptions, create_gallery, evaluate
from nextreid.models import create_model
from nextreid.retrieval import Entry
from nextreid.synthetic import write_folder_layout


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 1e-9)
    monkeypatch.setattr(progress, "_BETWEEN", 0)


@pytest.fixture
def bar(at_once):
    return lambda **options: progress.progress_bar(range(5), "embed", "batch", **options)


@pytest.fixture(scope="module")
def persons():
    return load_dataset("synthetic-persons", num_train=2, num_test=2, frames_per_visit=2)


def test_lines_in_a_pipe(bar, capsys):
    for _ in bar(shown=True):
        pass
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and err.endswith("\n")
    assert [line.partition(", ")[0] for line in err.splitlines()] == [f"embed: {n} of 5" for n in range(1, 6)]


def test_a_counter_shows_what_it_is_told(at_once, capsys):
    with progress.progress_counter("rank", "query", shown=True) as count:
        count(3, 9)
        count(9, 9)
    assert [line.partition(", ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "rank: 3 of 9",
        "rank: 9 of 9",
    ]


@pytest.mark.parametrize("shown", [True, False])
def test_ranking_and_the_look_at_images_are_shown(persons, at_once, capsys, shown):
    evaluate(create_model("baseline_tiny"), persons, on_error="skip", options=EmbedOptions(progress=shown))
    err = capsys.readouterr().err
    assert [f"{what}: " in err for what in ("look at images", "embed", "rank")] == [shown] * 3


def test_the_commands_show_theirs(persons, at_once, capsys, tmp_path):
    tree = write_folder_layout(persons, tmp_path / "RGBNT201")
    main(["data", "check", "rgbnt201", "--root", str(tree), "--workers", "0"])
    assert "check: 1 of " in capsys.readouterr().err
    with create_gallery(tmp_path / "people", create_model("baseline_tiny")) as gallery:
        gallery.add(np.eye(3, gallery.width, dtype=np.float32), [Entry(key, key) for key in "abc"])
        gallery.delete(key="a")
    for command in ("verify", "compact"):
        assert main(["gallery", command, str(tmp_path / "people")]) == 0
        assert f"{command}: 2 of 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, "images.store"])
def test_an_image_cache_counts_its_images(persons, tmp_path, name):
    counts = []
    file = name and tmp_path / name
    made = ImageCache.build(
        persons.query, persons.modalities, EvalTransform((8, 4)), file=file, progress=lambda *n: counts.append(n)
    )
    assert counts == [(n, len(made)) for n in range(1, len(made) + 1)]


def test_a_bar_on_a_terminal(bar, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = bar(shown=True)
    shown.refresh()
    shown.close()
    assert "\rembed" in capsys.readouterr().err


def test_a_line_every_half_minute(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = progress._Lines()
    for second in range(2, 3600):
        clock[0] = float(second)
        lines.write(f"\r{second}")
    assert [int(line) for line in capsys.readouterr().err.split()] == list(range(2, 3600, 30))


@pytest.mark.parametrize("shown", [True, False])
def test_short_work_and_unasked_progress_show_nothing(shown, capsys):
    assert list(progress.progress_bar(range(3), "x", "step", shown=shown)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
