"""A caption server that answers anything: one call may fail, the run goes on, and nothing is sent on."""

import pytest

from benchmarks.reliability.servers import ANSWERS, ask


@pytest.mark.parametrize("name", ANSWERS)
def test_an_odd_answer_costs_one_call_at_most(name):
    assert ask(ANSWERS[name]) in ("read", "rejected")
