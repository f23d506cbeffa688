"""Marks, frames and placeholders differ in shape; a file is written whole or not at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextreid.data import ImageFile, Sample
from nextreid.viz import save_image
from nextreid.viz.drawing import (
    CORRECT,
    WRONG,
    Canvas,
    _face,
    describe_labels,
    draw_image,
    fit_text,
    font,
    hatched,
    mark,
    readable,
    size_to_draw,
    wrap_text,
)


def ink(image, size):
    """Paste on white, turn to grey, and return where it is dark: the shape without its colour."""
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(image, (0, 0), image)
    return np.asarray(canvas.convert("L")) < 190


@pytest.mark.parametrize("size", [12, 17, 40])
def test_marks_differ_without_colour(size):
    correct, wrong = ink(mark(True, size), size), ink(mark(False, size), size)
    assert correct.any() and wrong.any()
    assert (correct != wrong).mean() > 0.15
    assert (wrong == wrong[:, ::-1]).mean() > 0.97 and (correct == correct[:, ::-1]).mean() < 0.95


@pytest.mark.parametrize(("dashed", "low", "high"), [(False, 1.0, 1.0), (True, 0.4, 0.75)])
def test_frames(dashed, low, high):
    canvas = Canvas(120, 200)
    canvas.frame((10, 10, 110, 190), CORRECT, 4, dashed)
    painted = (np.asarray(canvas.image) == CORRECT).all(axis=2)
    border = np.zeros_like(painted)
    border[10:190, 10:110] = True
    border[14:186, 14:106] = False
    assert not painted[~border].any()
    assert low <= painted[border].mean() <= high


def test_colours_differ_in_blue_and_yellow_for_every_eye():
    """The two colours differ by much in blue, which red-green blindness leaves alone, and in red and green."""
    assert CORRECT[2] - WRONG[2] > 150 and WRONG[0] - CORRECT[0] > 150


def test_missing_image_is_hatched():
    assert np.array_equal(draw_image(None, (40, 60)), hatched((40, 60)))
    assert len(np.unique(np.asarray(hatched((40, 60))))) > 10


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3)])
def test_arrays_and_files_are_drawn_alike(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    image = draw_image(array, (24, 32))
    assert image.mode == "RGB" and image.size == (24, 32)
    assert np.array_equal(image, draw_image(tmp_path / "a.png", (24, 32)))
    assert np.array_equal(draw_image(array, (6, 8)), Image.fromarray(array).convert("RGB"))


def test_a_part_of_a_file_is_drawn_alone(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "strip.png")
    part = ImageFile(tmp_path / "strip.png", box=(6, 0, 12, 8), size=(12, 8))
    assert np.array_equal(draw_image(part, (6, 8)), array[:, 6:])
    assert size_to_draw([Sample("a", 0, 0, -1, (None, part))], 16) == (12, 16)


def test_size_follows_the_first_image(make_sample):
    assert size_to_draw([make_sample(missing=(0, 1, 2)), make_sample()], 144) == (72, 144)
    assert size_to_draw([make_sample(height=20, width=40)], 100) == (100, 50)
    with pytest.raises(ValueError, match="none of 1 samples has an image"):
        size_to_draw([Sample("a", 0, 0, -1, (None, None))], 100)


def test_letters_beyond_latin_take_an_installed_font_if_there_is_one(monkeypatch):
    own, installed = font(13), []

    def truetype(name, size):
        if name not in installed:
            raise OSError(name)
        return name

    monkeypatch.setattr("PIL.ImageFont.truetype", truetype)
    monkeypatch.setattr("PIL.ImageFont.load_default", lambda size: own)
    assert _face.__wrapped__(14, False) is own  # boxes for letters, but a picture
    installed += ["DejaVuSans.ttf", "msyh.ttc"]
    assert _face.__wrapped__(14, False) == "msyh.ttc" and _face.__wrapped__(14, True) is own


def test_long_text_is_shortened():
    assert fit_text("rgb", 13, 100) == "rgb"
    short = fit_text("a very long name of a modality", 13, 60)
    assert short.startswith("a v") and short.endswith("...") and font(13).getlength(short) <= 60


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".PNG"])
def test_save(tmp_path, suffix):
    path = save_image(Image.new("RGB", (4, 3), CORRECT), tmp_path / "new" / f"a{suffix}")
    with Image.open(path) as image:
        assert image.size == (4, 3)
    assert [p.name for p in path.parent.iterdir()] == [f"a{suffix}"]


def test_unknown_suffix_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"unknown image suffix '.xyz'; use .png"):
        save_image(Image.new("RGB", (4, 3)), tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_image(Image.new("RGB", (4, 3)), path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.png"]


@given(st.text("ab c_/.-", max_size=60), st.integers(8, 120), st.integers(1, 4))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_wrapped_text_fits_and_loses_nothing_but_blanks(text, width, lines):
    shown = wrap_text(text, 10, width, lines)
    assert len(shown) <= lines
    assert all(font(10).getlength(line) <= width or len(line) <= 3 for line in shown)
    if not (shown and shown[-1].endswith("...")):
        assert "".join("".join(shown).split()) == "".join(text.split())


def test_file_names_break_at_their_marks():
    assert wrap_text("200001_cam1_1_00.jpg", 10, 80, 3) == ["200001_cam1_", "1_00.jpg"]
    assert wrap_text("no break", 10, 1000, 1) == ["no break"] and wrap_text("", 10, 50, 2) == []


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ((5, 0, -1), ("id 5", "cam 0")),
        ((-1, -1, -1), ("id unknown", "")),
        ((7, 1, 3), ("id anna", "cam 0002, scene 3")),
    ],
)
def test_labels_are_shown_as_files_name_them(labels, shown):
    names = {"pid": {7: "anna"}, "camid": {1: "0002"}}
    assert describe_labels(Sample("a", *labels, (None,)), names) == shown


def test_dark_images_are_brightened_and_no_others():
    dark = Image.fromarray(np.linspace(0, 30, 1200).astype(np.uint8).reshape(30, 40)).convert("RGB")
    shown, was_dark = readable(dark)
    before, after = np.asarray(dark)[..., 0].ravel(), np.asarray(shown)[..., 0].ravel()
    assert was_dark and after.mean() > 2 * before.mean() and after.max() <= 255
    assert (np.diff(after.astype(int)) >= 0).all() and after[before == 0].max() == 0  # order and black stay
    for image in (Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (90, 90, 90))):
        assert readable(image) == (image, False)


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<svg"), ("a.PDF", b"%PDF"), ("a.jpg", b"\xff\xd8")])
def test_figures_are_saved_by_their_ending(name, start, tmp_path):
    assert save_image(Image.new("RGB", (40, 20)), tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"unknown image suffix '\.txt'"):
        save_image(Image.new("RGB", (4, 2)), tmp_path / "a.txt")
