"""Whatever others wrote is read, or rejected by an error that names it; nothing else happens."""

import pytest

from benchmarks.reliability.fuzz import run
from benchmarks.reliability.parsers import PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_odd_input_is_read_or_rejected_by_name(name, tmp_path):
    parser = PARSERS[name]
    counts, faults = run(parser.make(tmp_path), max(10, 150 // parser.cost))
    assert not faults
    assert counts["read"] + counts["rejected"] == counts.total() > 0
