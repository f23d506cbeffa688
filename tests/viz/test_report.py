"""Reports: everything inside one file, all text escaped."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nextreid.viz import Table, write_report


class Page(HTMLParser):
    """Checks that tags nest, and collects text, attributes and cells."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.attributes, self.tags = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.texts.append(data)


NASTY = "<script>alert('1')</script> & \"2\""


@pytest.fixture
def html(tmp_path):
    path = write_report(
        tmp_path / "deep" / "report.html",
        title=f"t {NASTY}",
        intro=f"first {NASTY}\n\nsecond",
        tables=[
            Table(f"table {NASTY}", ["name", f"c {NASTY}", "%"], [[f"cell {NASTY}", 0.123456, "82.1 %"]], f"n {NASTY}"),
            Table("empty", ["a"], []),
        ],
        images=[(f"p {NASTY}", Image.new("RGB", (5, 4), (1, 2, 3))), ("two", Image.new("L", (2, 2), 9))],
        facts={f"f {NASTY}": f"v {NASTY}", "flag": True, "none": None, "nan": float("nan"), "f32": np.float32(0.5)},
    )
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_text_is_escaped_everywhere(html):
    page = Page(html)
    assert "<script" not in html
    for prefix in ("t", "first", "table", "c", "cell", "n", "p", "f", "v"):
        assert f"{prefix} {NASTY}" in page.texts
    assert ("alt", f"p {NASTY}") in page.attributes


def test_images_are_inside(html):
    sources = [value for name, value in Page(html).attributes if name == "src"]
    images = [Image.open(BytesIO(base64.b64decode(s.removeprefix("data:image/png;base64,")))) for s in sources]
    assert [(i.size, i.getpixel((0, 0))) for i in images] == [((5, 4), (1, 2, 3)), ((2, 2), 9)]


def test_nothing_is_requested(html):
    without_images = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//|url\(|@import|<link|<script", without_images)


def test_light_and_dark_and_phone(html):
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_cells(html):
    page = Page(html)
    for text in ("0.1235", "82.1 %", "yes", "0.5"):
        assert text in page.texts
    assert page.texts.count("–") == 2
    assert len(re.findall(r'<td class="number">', html)) == 2
    assert page.tags.count("table") == 2 and page.tags.count("p") == 3


def test_only_a_title_is_needed(tmp_path):
    page = Page(write_report(tmp_path / "a.html", title="bare").read_text())
    assert page.texts == ["bare", "bare"] and "table" not in page.tags and "dl" not in page.tags
