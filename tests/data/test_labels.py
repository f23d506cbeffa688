"""Whole numbers keep their values, words are numbered in their order, and what is neither is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.data.labels import number_labels


def number(*cells: str) -> tuple[list[int], dict[int, str]]:
    return number_labels("pid", [(f"line {place}", cell) for place, cell in enumerate(cells, 2)])


@pytest.mark.parametrize(
    ("cells", "numbers", "names"),
    [
        (["7", "0007", "12.0", "3."], [7, 7, 12, 3], {}),
        (["", "-1", "-1.0", "NaN", "NA", "None", "<NA>", "5"], [-1] * 7 + [5], {}),
        ([str(2**63 - 1), "0"], [2**63 - 1, 0], {}),
        ([str(10**20), str(10**20 + 1), "5", ""], [0, 1, 2, -1], {0: str(10**20), 1: str(10**20 + 1), 2: "5"}),
        (["b", "A7", "b", "", "12"], [2, 1, 2, -1, 0], {0: "12", 1: "A7", 2: "b"}),
        (["3e8", "ff0"], [0, 1], {0: "3e8", 1: "ff0"}),
        (["é", "e\u0301"], [0, 0], {0: "é"}),
        ([], [], {}),
    ],
)
def test_forms(cells: list[str], numbers: list[int], names: dict[int, str]) -> None:
    assert number(*cells) == (numbers, names)


@pytest.mark.parametrize("cell", ["1.5", "-2", "1.23457E+17", "1" * 5000 + ".5"])
def test_numbers_that_are_no_labels_are_named(cell: str) -> None:
    with pytest.raises(ValueError, match="line 3: pid must be a whole number, -1 or a word, got '") as caught:
        number("1", cell)
    assert ("spreadsheet" in str(caught.value)) == ("E" in cell) and len(str(caught.value)) < 300


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.text("a1éE.-0 ", max_size=4) | st.integers(-1, 10**30).map(str), max_size=8))
def test_equal_words_have_equal_numbers_in_any_order(cells: list[str]) -> None:
    try:
        numbers, names = number(*cells)
    except ValueError:
        return
    assert all(-1 <= n < 2**63 for n in numbers)
    backwards, same = number(*reversed(cells))
    assert (backwards[::-1], same) == (numbers, names)
    for n, cell in zip(numbers, cells, strict=True):
        if names and n >= 0:
            assert names[n] == cell or names[n] == cell.partition(".")[0]
