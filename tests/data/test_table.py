"""Tables as people have them: every form gives the table that was meant, or an error that names file and cause."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.data.table import read_table

ROWS = [["pid", "rgb", "caption_rgb"], ["1", "a.jpg", "Red; warm, a\tbag"], ["2", "b.jpg", 'He says "no"\nand goes.']]


def write(path: Path, rows: list[list[str]], separator: str = ",", line_end: str = "\n", start: str = "") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=line_end).writerows(rows)
    path.write_bytes((start + text.getvalue()).encode())
    return path


def cells(path: Path, encoding: str | None = None) -> list[list[str]]:
    columns, rows = read_table(path, encoding)
    return [list(columns), *(list(row.values()) for _, row in rows)]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_line_ends_and_marks(tmp_path: Path, separator: str, line_end: str, start: str) -> None:
    assert cells(write(tmp_path / "m.csv", ROWS, separator, line_end, start)) == ROWS


@settings(max_examples=60, derandomize=True)
@given(
    names=st.lists(st.sampled_from(["pid", "camid", "rgb", "nir", "key", "split"]), min_size=1, unique=True),
    separator=st.sampled_from(",;\t"),
    data=st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, names: list[str], separator: str, data) -> None:
    text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)
    row = st.lists(text, min_size=len(names), max_size=len(names))
    rows = [names, *data.draw(st.lists(row, max_size=4))]
    assert cells(write(tmp_path_factory.mktemp("t") / "m.csv", rows, separator)) == rows


@settings(max_examples=300, derandomize=True)
@given(data=st.binary(max_size=200) | st.text(",;\t\n\r\"'a1\0\ufeff", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_named(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("t") / "m.csv"
    path.write_bytes(data)
    try:
        columns, rows = read_table(path)
    except ValueError as error:
        assert path.name in str(error) and len(str(error)) < 1000
    else:
        assert all(tuple(row) == columns for _, row in rows)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp1252", "gbk", "utf-32"])
def test_another_encoding_is_named_with_a_hint_and_read_when_it_is_given(tmp_path: Path, encoding: str) -> None:
    word = "红色" if encoding == "gbk" else "café"
    (tmp_path / "m.csv").write_bytes(f"pid,rgb\n1,{word}.jpg\n".encode(encoding))
    with pytest.raises(ValueError, match=r"m\.csv, line \d: not CSV in UTF-8.*save it as UTF-8") as caught:
        read_table(tmp_path / "m.csv")
    assert encoding in str(caught.value)
    assert cells(tmp_path / "m.csv", encoding) == [["pid", "rgb"], ["1", f"{word}.jpg"]]


def test_a_wrong_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("pid,rgb\n1,caf\u00e9.jpg\n".encode("cp1252"))
    with pytest.raises(ValueError, match="no encoding 'klingon'"):
        read_table(tmp_path / "m.csv", "klingon")
    with pytest.raises(ValueError, match="not CSV in ASCII"):
        read_table(tmp_path / "m.csv", "ascii")


PLAIN = [["pid", "rgb"], ["7", "a.jpg"], ["8", "b.jpg"]]
FORMS = {
    "index of pandas": ",pid,rgb\n0,7,a.jpg\n1,8,b.jpg\n",
    "the same, read and written again": "Unnamed: 0,pid,rgb\n0,7,a.jpg\n1,8,b.jpg\n",
    "index of R": '"pid","rgb"\n"1",7,"a.jpg"\n"2",8,"b.jpg"\n',
    "columns and rows of blanks": "pid,rgb,,\n7,a.jpg,,\n,,,\n8,b.jpg,,\n\n,,,\n",
    "blanks around cells": " pid , rgb\n7 , a.jpg\n 8,b.jpg \n",
    "no last line end": "pid,rgb\n7,a.jpg\n8,b.jpg",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_indices_and_blanks_are_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    assert cells(tmp_path / "m.csv") == PLAIN


BAD = {
    "short row": ("pid,rgb\n7\n", r"line 2: the row does not have the 2 cells of the header, it has 1"),
    "comma in a cell": ("pid,rgb\n7,a,b.jpg\n", r"line 2: .* it has 3; cells are separated by ','"),
    "column without a name": ("pid,,rgb\n7,x,a.jpg\n", "column 2 of 3 has no name"),
    "columns of one name": ("rgb,pid,RGB\na,1,b\n", r"columns \['rgb'\] occur more than once"),
    "NUL": ("pid,rgb\n7,a\0.jpg\n", "line 2: .*NUL"),
    "open quotation": ('pid,rgb\n7,"a.jpg\n8,b.jpg\n', "after line 3: .*is a quotation mark missing"),
    "long cell": ("pid,rgb\n7," + "a" * 200_000 + "\n", "after line 2: .*field larger than field limit"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(tmp_path / "m.csv")
    assert "m.csv" in str(caught.value) and len(str(caught.value)) < 1000


def test_parquet_with_an_index_of_pandas(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"pid": [7, 8], "rgb": ["a.jpg", "b.jpg"], "__index_level_0__": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert cells(tmp_path / "m.parquet") == PLAIN
