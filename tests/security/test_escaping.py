"""Whatever a name or a field holds, what is shown has the same structure: no tag, no row and no formula of its own."""

import csv
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextreid._files import write_csv
from nextreid.models._card import model_card
from nextreid.viz import Table, write_report

HOSTILE = st.one_of(
    st.sampled_from(
        ["<script>x</script>", '"><img src=x>', "a|b", "a\n# b", "---\na: b\n---", "=1+1", "&lt;", "`", "\r", "'"]
    ),
    st.text(max_size=12),
)
repeatable = settings(derandomize=True, deadline=None, max_examples=40)


class Tags(HTMLParser):
    """Collects tags with the names of their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))


def tags(page):
    parser = Tags()
    parser.feed(page)
    return parser.found


def report(path, text):
    image = Image.new("RGB", (2, 2))
    table = Table(text, ["name", text], [["x", text], [text, "y"]], note=f"x{text}")
    write_report(path, title=text, intro="x", tables=[table], images=[(text, image)], facts={"name": text, "other": 1})
    return tags(path.read_text(encoding="utf-8"))


@repeatable
@given(HOSTILE)
def test_a_report_has_the_tags_of_the_library_alone(tmp_path_factory, text):
    home = tmp_path_factory.mktemp("report")
    assert report(home / "a.html", f"x{text}") == report(home / "b.html", "xx")


def card(text):
    config = {
        "architecture": "next_tiny",
        "num_features": 8,
        "num_classes": 0,
        "model_args": {"tower": text},
        "pretrained_cfg": {"notes": text, "protocol": text, "trained_on": {"dataset": text}, "metrics": {"mAP": 0.5}},
        "licenses": {"code": "x", "weights": "mit", "data": text},
    }
    return model_card(config).splitlines()


@repeatable
@given(HOSTILE)
def test_a_card_has_the_lines_and_columns_of_the_library_alone(text):
    plain, hostile = card("x"), card(f"x{text}")
    assert len(hostile) == len(plain)
    for ours, theirs in zip(plain, hostile, strict=True):
        assert ours.replace("\\|", "").count("|") == theirs.replace("\\|", "").count("|")
        assert ("<" in ours) == ("<" in theirs)


@repeatable
@given(st.lists(HOSTILE, min_size=1, max_size=3))
def test_no_cell_of_a_table_is_a_formula(tmp_path_factory, cells):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    write_csv(path, ["key"], [[cell] for cell in cells])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(cells) + 1
    assert not [row for row in rows[1:] if row and row[0].startswith(("=", "@", "\t", "\r"))]
