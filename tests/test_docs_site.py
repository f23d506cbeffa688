"""The site and the notebook: no page is lost, links lead somewhere, cells run, the site is built without a warning."""

import ast
import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nextreid

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
LINK = re.compile(r"\]\(([^)\s#]+)")


def contents():
    """Entries of every table of contents."""
    text = "\n".join((DOCS / name).read_text(encoding="utf-8") for name in ("index.rst", "api.rst"))
    return " ".join(re.findall(r"\.\. (?:toctree|autosummary)::\n(?:   :.*\n)*\n((?:   .+\n)+)", text)).split()


def cells(path, kind):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == kind:
            yield "".join(cell["source"]), cell


def test_every_page_stands_in_the_contents_once():
    pages = [page for suffix in (".md", ".rst", ".ipynb") for page in DOCS.rglob(f"*{suffix}")]
    names = [page.relative_to(DOCS).with_suffix("").as_posix() for page in pages]
    expected = [name for name in names if name != "index" and not name.startswith(("api/", "_"))]
    listed = [entry for entry in contents() if not entry.startswith("nextreid.")]
    assert sorted(listed) == sorted(expected), "docs/index.rst lists every page once, in the section where it belongs"


def test_the_reference_has_every_package():
    listed = [entry.removeprefix("nextreid.") for entry in contents() if entry.startswith("nextreid.")]
    assert sorted(listed) == sorted(nextreid._PACKAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_its_links_resolve(path, tmp_path, monkeypatch):
    """Its outputs are those of ``jupyter execute --inplace``."""
    monkeypatch.chdir(tmp_path)
    for text, _ in cells(path, "markdown"):
        for target in LINK.findall(text):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
    namespace = {"__name__": "notebook"}
    for number, (code, cell) in enumerate(cells(path, "code"), start=1):
        exec(compile(code, f"{path.name}, cell {number}", "exec"), namespace)
        shown = [data for output in cell["outputs"] if (data := output.get("data"))]
        assert len(shown) == isinstance(ast.parse(code).body[-1], ast.Expr)
        for data in shown:
            assert "image/png" not in data or base64.b64decode("".join(data["image/png"])).startswith(b"\x89PNG")
    assert path.stat().st_size < 400_000


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    words = ["-W", "--keep-going", "-q", "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    targets = {target for target in re.findall(r'(?:href|src)="([^"#?]+)', page) if not re.match(r"\w+:", target)}
    assert {"zoo.html", "security.html", "results.html", "_images/demo_rank_list.png"} <= targets
    assert all((tmp_path / "site" / target).exists() for target in targets)
    api = (tmp_path / "site" / "api" / "nextreid.engine.html").read_text(encoding="utf-8")
    assert 'id="nextreid.engine.train"' in api
