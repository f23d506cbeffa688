"""The package itself: imports run one way, importing is quiet and light, the public names exist."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import nextreid

ROOT = Path(nextreid.__file__).parent
MAY_IMPORT = {
    "ops": set(),
    "layers": {"ops"},
    "losses": set(),
    "retrieval": set(),
    "captioning": {"retrieval"},
    "data": {"captioning", "retrieval", "version"},
    "synthetic": {"captioning", "data"},
    "towers": {"layers", "version"},
    "models": {"layers", "ops", "towers", "version"},
    "viz": {"data", "retrieval", "version"},
    "engine": {
        "captioning",
        "synthetic",
        "data",
        "layers",
        "losses",
        "models",
        "ops",
        "retrieval",
        "towers",
        "viz",
        "version",
    },
    "cli": {"captioning", "data", "engine", "losses", "models", "retrieval", "viz", "version"},
    "version.py": set(),
    "_files.py": set(),
    "__main__.py": {"cli"},
}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of ours that a file imports, absolute or relative, at the top or inside a function."""
    package = ("nextreid", *path.relative_to(ROOT).parts[:-1])
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            full = ".".join(part for part in (base, node.module) if part)
            names = [f"{full}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "nextreid" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    if room == "__init__.py":
        return
    assert room in MAY_IMPORT, f"{room} is a new room: say here what it may import"
    foreign = imported_rooms(path) - {room, "_files"}
    assert foreign <= MAY_IMPORT[room], f"{room} must not import {sorted(foreign - MAY_IMPORT[room])}"


def test_files_stay_small():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 450}
    assert not long


def test_import_is_quiet_and_needs_nothing():
    """No output, no CUDA context, no Triton, no network, no heavy extras."""
    code = (
        "import socket, sys, json\n"
        "def refuse(*a, **k): raise OSError('network')\n"
        "socket.socket.connect = refuse\n"
        "sys.modules['triton'] = None\n"
        "import nextreid, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "heavy = [m for m in ('matplotlib', 'sklearn', 'pandas', 'transformers', 'pyarrow') if m in sys.modules]\n"
        "print(json.dumps(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [] and done.stderr == ""


def test_public_names_exist_and_are_documented():
    assert nextreid.__all__ == sorted(nextreid.__all__)
    for name in nextreid.__all__:
        assert hasattr(nextreid, name)
        assert name == "__version__" or getattr(nextreid, name).__doc__
