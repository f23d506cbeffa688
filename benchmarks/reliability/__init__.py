"""Kills, flipped bits, odd servers and odd input: what survived; rewrites the table of docs/reliability.md."""

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextreid.viz import Table

KILLS, FLIPS, INPUTS = 100, 30, 1000
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_COLUMNS = ("attack", "target", "tries", "unharmed", "rejected", "wrong", "note")


def run() -> Iterator[dict[str, Any]]:
    """One row for each attack and target: tries, and what became of them."""
    from .flips import flips
    from .fuzz import fuzz
    from .kills import kills
    from .servers import servers

    rows = []
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what is attacked warns of it, thousands of times
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as name:
            warnings.simplefilter("ignore")
            folder = Path(name)
            # kills come first: they fork, and nothing else should have started threads
            for place, attack in enumerate((lambda home: kills(home, KILLS), lambda home: flips(home, FLIPS), servers,
                                            lambda home: fuzz(home, INPUTS))):  # fmt: skip
                (folder / str(place)).mkdir()
                for row in attack(folder / str(place)):
                    rows.append(row)
                    yield row
    finally:
        logging.disable(level)
    write_page(rows)


def write_page(rows: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Put the rows into the page, in place of the table that stands there."""
    table = Table("", _COLUMNS, [[row[column] for column in _COLUMNS] for row in rows]).markdown()
    text = page.read_text(encoding="utf-8")
    mark = "<!-- figures: reliability.csv -->"
    written, count = re.subn(rf"{re.escape(mark)}\n.*?\n\n", lambda _: f"{mark}\n{table}\n\n", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} needs one table below {mark}")
    page.write_text(written, encoding="utf-8")
