"""A writer is killed at any moment: what was acknowledged is there, and nothing half-written is read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_writer_loses_nothing(tmp_path, kills):
    words = [sys.executable, str(HERE / "killed_gallery.py"), str(tmp_path / "gallery"), str(kills), "0"]
    done = subprocess.run(words, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] == kills and json.loads(done.stdout)["changes"] > kills // 2
