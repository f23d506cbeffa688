"""The lowest versions that may be installed are those that continuous integration installs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_oldest_versions_are_the_floors():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: items for name, items in project["optional-dependencies"].items() if name != "dev"}
    wanted = [*project["dependencies"], *(item for items in extras.values() for item in items)]
    floors = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", item).groups() for item in wanted if "[" not in item)
    lines = (ROOT / ".github" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert oldest.keys() - floors.keys() == {"torchvision"}  # what belongs to that torch

    def numbers(version):
        found = [int(part) for part in version.split(".")]
        return found + [0] * (3 - len(found))

    assert {name: numbers(oldest[name]) for name in floors} == {name: numbers(floors[name]) for name in floors}


def test_every_system_is_tested_at_both_ends():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    for word in ("ubuntu-latest, macos-latest, windows-latest", "oldest, newest", "pytest tests/security", ".ci/run"):
        assert word in text
