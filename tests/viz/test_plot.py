"""Plots: files by ending, the same bytes each time, no display, no settings left behind, missing packages by name."""

import sys
from itertools import pairwise, product

import numpy as np
import pytest
from PIL import Image

from nextreid.viz import STYLES, save_image, write_report
from nextreid.viz.plot import OKABE_ITO, colour_and_line, colour_and_marker, draw


def plot(style="light", panels=1):
    def paint(figure, axes):
        for axis in axes:
            axis.plot([1, 2], [3, 4], label="a line")
        return "Two points, a < b."

    return draw(style, panels, paint)


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml"), ("a.jpg", b"\xff\xd8")]
)
def test_files_by_their_ending_are_the_same_each_time(name, start, tmp_path):
    written = [save_image(plot("print"), tmp_path / str(i) / name).read_bytes() for i in range(2)]
    assert written[0].startswith(start) and written[0] == written[1]
    if not name.endswith("jpg"):
        assert any(words in written[0] for words in (b"a < b", b"a &lt; b"))  # the caption, as description


def test_letters_of_a_pdf_can_be_embedded_and_dots_are_those_of_the_style(tmp_path):
    assert b"/Type3" not in save_image(plot("print"), tmp_path / "a.pdf").read_bytes()
    for name, style in STYLES.items():
        image = plot(name).image()
        assert image.width == round(style.panel[0] * style.settings["figure.dpi"]) and image.mode == "RGB"
    assert plot("print", panels=7).figure.get_figwidth() <= 7.0


def test_no_display_is_used_and_no_setting_stays(monkeypatch):
    import matplotlib

    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["no such font"])  # as a user's matplotlibrc may have it
    names = ("font.family", "font.size", "figure.dpi", "axes.grid", "pdf.fonttype", "svg.hashsalt")
    before = [matplotlib.rcParams[name] for name in names]
    assert plot().figure.axes[0].title.get_fontfamily()[0] == "DejaVu Sans"  # which matplotlib brings along
    assert [matplotlib.rcParams[name] for name in names] == before


def test_lines_and_marks_differ_without_colour():
    """Neighbours differ in more than colour, no pair of colour and mark comes twice, nor a mark in a dozen."""
    marks = [tuple(colour_and_marker(i).values()) for i in range(84)]
    lines = [tuple(colour_and_line(i).values()) for i in range(28)]
    for looks in (marks, lines):
        assert len(set(looks)) == len(looks)
        assert all(a[1] != b[1] for a, b in pairwise(looks))
    assert len({mark for _, mark in marks[:12]}) == 12  # as many identities as 'show space' draws unasked


def test_colours_stay_apart_for_every_eye():
    """Simulated as Vienot et al. (1999) do for missing red and green cones, any two differ in lightness or in blue."""
    rgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in OKABE_ITO]) ** 2.2
    protan = rgb @ np.array([[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.004, -0.004, 1]]).T
    deutan = rgb @ np.array([[0.2927, 0.7073, 0], [0.2927, 0.7073, 0], [-0.0223, 0.0223, 1]]).T
    for seen in (rgb, protan, deutan):
        seen = np.clip(seen, 0, 1) ** (1 / 2.2)
        apart = [np.abs(seen[i] - seen[j]).max() for i, j in product(range(7), repeat=2) if i < j]
        assert min(apart) > 0.1


def test_a_report_shows_plots_too(tmp_path):
    page = write_report(
        tmp_path / "r.html", title="t", images=[("a plot", plot()), ("an image", Image.new("RGB", (2, 2)))]
    )
    assert page.read_text().count("data:image/png") == 2


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown style 'dark'.*Known: light, print"):
        plot("dark")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "nextreid\[figures\]"'):
        plot()
