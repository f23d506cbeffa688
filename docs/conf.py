"""The documentation as a site: ``sphinx-build -W docs build/site``.

The pages are the Markdown of this folder as it is read on GitHub, a notebook with its outputs, and a reference that is
made from the docstrings.
"""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from site_parsers import NotebookParser, turn_links

import nextreid

project, author = "nextreid", "the authors of nextreid"
version = nextreid.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
templates_path = exclude_patterns = ["_templates"]

html_theme = "furo"
html_title = f"nextreid {version}"
html_show_copyright = html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_heading_anchors = 4

default_role = "py:obj"  # a name in backticks leads to its entry, if it has one
add_module_names = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_custom_sections = [("Attributes", "params_style")]  # in the text of their class alone


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Turn the links of a page; list the files of results on theirs."""
    if name == "results":
        folder = Path("..", "benchmarks", "results")
        names = sorted(path.name for path in (Path(app.srcdir) / folder).glob("*.csv"))
        source[0] += "".join(f"\n* :download:`{name} <{(folder / name).as_posix()}>`" for name in names)
    source[0] = turn_links(source[0])


def skip_field(app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which the docstring of their class explains."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("source-read", read_page)
    app.connect("autodoc-skip-member", skip_field)
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
