"""What the site reads besides the Markdown of this folder: pages of the folder above, and notebooks."""

import json
import re
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser

# Where in the site is what lies outside of this folder and is no file to download.
PLACES = {
    "../README.md": "index.rst",
    "../CHANGELOG.md": "changelog.rst",
    "../SECURITY.md": "security.rst",
    "../benchmarks/results": "results.rst",
}
_TARGET = re.compile(r"(?<=\]\()[^)\s#]+")


def turn_links(text: str) -> str:
    """Turn the links of a page of this folder to where their targets are in the site."""
    return _TARGET.sub(lambda link: PLACES.get(link[0].rstrip("/"), link[0]), text)


def turn_links_above(text: str) -> str:
    """Turn the links of a page of the folder above, as if it lay in this one."""

    def below(link: re.Match[str]) -> str:
        inside = link[0].removeprefix("docs/")
        return link[0] if re.match(r"\w+:", link[0]) else inside if inside != link[0] else f"../{link[0]}"

    return turn_links(_TARGET.sub(below, text))


class Parser(MystParser):
    """Parser of an included page of the folder above, by the name that ``include`` looks for."""

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse its text."""
        super().parse(turn_links_above(inputstring), document)


class NotebookParser(MystParser):
    """Parser of a notebook as the Markdown page that its cells and their outputs make."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse its text."""
        super().parse("\n\n".join(map(_cell, json.loads(inputstring)["cells"])), document)


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [f"```python\n{source}\n```"]
    for data in (output.get("data", {}) for output in cell["outputs"]):
        if "image/png" in data:
            png = "".join(data["image/png"]).replace("\n", "")
            parts.append(f'<img alt="the output of the code above" src="data:image/png;base64,{png}">')
        elif "text/plain" in data:
            parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts)
