"""The table printer: alignment, values, Markdown, HTML."""

import numpy as np
import pytest

from nextreid.viz import Table

TABLE = Table(
    "In percent",
    ["model", "mAP", "queries", "captions"],
    [["next", 82.1234, "3 of 12", True], ["a|b", None, "12 of 12", np.bool_(False)], ["c", float("nan"), "", None]],
    "One seed.",
)


def test_text():
    assert TABLE.text().splitlines() == [
        "In percent",
        "model    mAP  queries   captions",
        "next   82.12  3 of 12   yes",
        "a|b        –  12 of 12  no",
        "c          –            –",
        "One seed.",
    ]


def test_markdown():
    assert TABLE.markdown().splitlines() == [
        "**In percent**",
        "",
        "| model | mAP | queries | captions |",
        "| --- | ---: | --- | --- |",
        "| next | 82.12 | 3 of 12 | yes |",
        "| a\\|b | – | 12 of 12 | no |",
        "| c | – |  | – |",
        "",
        "One seed.",
    ]


@pytest.mark.parametrize("cells", [[1, 2.5], ["82.1 %", "–"], ["+1.2 [-0.3, +2.7]", ""], ["1/4/9", "4,312"]])
def test_numbers_are_aligned_to_the_right(cells):
    table = Table("", ["a rather long heading"], [[cell] for cell in cells])
    assert all(len(line) == 21 for line in table.text().splitlines() if line)
    assert table.html().count('class="number"') == 3 and "| ---: |" in table.markdown()


def test_text_is_aligned_to_the_left():
    table = Table("", ["a", "b"], [["x1", "2 of 3"], ["yyy", "4"]])
    assert table.text() == "a    b\nx1   2 of 3\nyyy  4" and "number" not in table.html()


def test_without_rows_title_and_note():
    table = Table("", ["a", "b"], [])
    assert table.text() == "a  b" and table.markdown() == "| a | b |\n| --- | --- |" and "<h2>" not in table.html()


def test_repr_is_short():
    assert repr(TABLE) == "Table('In percent', 4 columns, 3 rows)"


def test_html_is_escaped():
    html = Table("<t>", ["<c>"], [["<x> & y"]], "<n>").html()
    assert not any(f"<{raw}>" in html for raw in "tcxn") and "&lt;x&gt; &amp; y" in html


def test_uneven_rows_are_rejected():
    with pytest.raises(ValueError, match="table 'x': row 2 has 1 cells but there are 2 columns"):
        Table("x", ["a", "b"], [[1, 2], [3]])
