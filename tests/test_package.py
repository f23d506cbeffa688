"""The package as a whole: imports run one way, importing is quiet and light, the public names exist."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nextreid

ROOT = Path(nextreid.__file__).parent
_BASE = {"_disk", "_files", "_names", "_progress", "_schema", "version"}  # whatever may be imported by all
MAY_IMPORT = {
    "ops": set(),
    "layers": {"ops"},
    "towers": {"_download", "layers"},
    "models": {"_download", "layers", "losses", "ops", "towers"},
    "losses": set(),
    "retrieval": set(),
    "data": set(),
    "captioning": {"data", "retrieval"},
    "synthetic": {"captioning", "data"},
    "viz": {"data", "retrieval"},
    "engine": {"data", "layers", "losses", "models", "ops", "retrieval", "synthetic", "towers", "viz"},
    "app": {"captioning", "data", "engine", "models", "retrieval", "viz"},
    "cli": {"app", "captioning", "data", "engine", "losses", "models", "retrieval", "synthetic", "viz"},
    "__main__.py": {"cli"},
    "_disk.py": set(),
    "_files.py": set(),
    "_names.py": set(),
    "_progress.py": set(),
    "_schema.py": set(),
    "version.py": set(),
    "_download.py": set(),
}
"""What each package may import: DESIGN's arrows, and two more: the audit of captions ranks by text (retrieval), and the
captions of synthetic persons are merged and composed as real ones are."""


def imported_packages(path: Path) -> set[str]:
    """Our packages that a file imports, absolute or relative, at the top, inside a function or for type checking."""
    inside = ("nextreid", *path.relative_to(ROOT).parts[:-1])
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level + 1]) if node.level else ""
            full = ".".join(part for part in (base, node.module) if part)
            names = [f"{full}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "nextreid" and len(parts) > 1:
                packages.add(parts[1])
    return packages


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    if package == "__init__.py":
        return
    assert package in MAY_IMPORT, f"{package} is new: say here what it may import"
    others = imported_packages(path) - {package} - _BASE
    assert others <= MAY_IMPORT[package], f"{package} must not import {sorted(others - MAY_IMPORT[package])}"


def test_files_stay_small():
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 450}
    assert not long


def fresh(code):
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", f"import json, sys\n{code}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_import_loads_nothing():
    assert fresh("import nextreid\nprint(json.dumps([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules]))") == []


def test_use_is_quiet_and_needs_nothing():
    """No output, no CUDA context, no Triton, no network, no heavy extras."""
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('network')\n"
        "socket.socket.connect = refuse\n"
        "sys.modules['triton'] = None\n"
        "import nextreid, torch\n"
        "for name in dir(nextreid): getattr(nextreid, name)\n"
        "assert not torch.cuda.is_initialized()\n"
        "heavy = ('matplotlib', 'sklearn', 'pandas', 'transformers', 'pyarrow', 'openai')\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))\n"
    )
    assert fresh(code) == []


def test_data_loads_neither_captioning_nor_retrieval():
    code = "import nextreid.data\nprint(json.dumps([m for m in sys.modules if m.startswith('nextreid.')]))"
    packages = {name.split(".")[1] for name in fresh(code)}
    assert packages == {"data", "_disk", "_files", "_names", "version"}


def test_public_names_exist_and_are_documented():
    assert nextreid.__all__ == sorted(nextreid.__all__, key=lambda n: (n != "__version__", n))
    for name in nextreid.__all__:
        assert hasattr(nextreid, name)
        assert name == "__version__" or getattr(nextreid, name).__doc__
    assert {"data", "engine", "retrieval", "viz", "create_model", "FeatureExtractor"} <= set(dir(nextreid))
    assert not [name for name in dir(nextreid) if name.startswith("_") and name != "__version__"]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(nextreid, "nonsense")  # noqa: B009


def test_the_stub_names_what_loads_lazily():
    stub = (ROOT / "__init__.pyi").read_text(encoding="utf-8")
    named = set(re.findall(r"import (\w+) as \1", stub))
    assert named == set(dir(nextreid))
