"""The documentation: its code runs, its commands parse, its links lead somewhere, its tables are in sync."""

import dataclasses
import inspect
import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

import nextreid
from benchmarks.paper.page import render
from nextreid import cli
from nextreid.cli.arguments import pairs
from nextreid.data import MODALITIES, list_datasets, load_dataset
from nextreid.data.datasets import registry as datasets_registry
from nextreid.engine import RECIPES, Recipe, demo, get_recipe
from nextreid.layers import NEXTHead
from nextreid.layers import _registry as layers_registry
from nextreid.models import NEXT, _authors
from nextreid.models import _registry as models_registry
from nextreid.retrieval import get_protocol, list_protocols
from nextreid.synthetic import PersonsConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
COMMANDS = set("demo train eval calibrate show extract export gallery models convert data captions browse".split())
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(text, language):
    """(line number, code) of every fenced block of a language."""
    return [(text[: m.start(2)].count("\n"), m[2]) for m in _FENCE.finditer(text) if m[1] == language]


def table(text, header):
    """Rows of the one table whose header begins so; cells that are one code span lose their backticks."""
    found = [lines for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE) if lines.startswith(f"| {header} |")]
    assert len(found) == 1, f"{len(found)} tables begin with {header!r}"
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in found[0].splitlines()[2:]]
    return [[re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in row] for row in rows]


def arguments(code):
    return eval(f"dict({code})", {"dict": dict})


def commands(text):
    """Arguments of every nextreid command in the shell blocks."""
    for _, code in blocks(text, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "nextreid":
                yield words[1:]


def slugs(text):
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # what a page registers is forgotten after it
    list_datasets()  # loads what registers itself, before the copy
    monkeypatch.setattr(datasets_registry, "_readers", dict(datasets_registry._readers))
    monkeypatch.setattr(layers_registry, "_LAYERS", dict(layers_registry._LAYERS))
    for name in ("_ENTRYPOINTS", "_CFGS"):
        monkeypatch.setattr(models_registry, name, dict(getattr(models_registry, name)))
    monkeypatch.setattr(_authors, "_AUTHORS", dict(_authors._AUTHORS))
    found = blocks(path.read_text(encoding="utf-8"), "python")
    assert found
    if path.name == "README.md":  # its example reads images that its first command leaves
        samples = load_dataset("synthetic-persons", num_test=1, splits=["test"]).query
        demo._write_images(samples[:4], MODALITIES, cli._parser().parse_args(["demo"]).out / demo.IMAGES)
    namespace = {"__name__": f"docs.{path.stem}"}
    for line, code in found:
        exec(compile("\n" * line + code, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_shell_blocks_parse_and_name_what_exists(path):
    for words in commands(path.read_text(encoding="utf-8")):
        try:
            args = cli._parser().parse_args(words)
        except SystemExit as done:
            assert done.code == 0, f"does not parse: nextreid {shlex.join(words)}"
            continue
        check(args)


def check(args: Namespace):
    if args.command in ("train", "eval"):
        assert args.dataset in list_datasets() or args.pattern or args.dataset.endswith(".csv")
        pairs(args.dataset_arg, "--dataset-arg")
    if args.command == "train":
        assert ":" in args.model or nextreid.is_model(args.model)
        get_recipe(args.recipe or "next", **pairs(args.set, "--set"))
        pairs(args.model_arg, "--model-arg")
    if args.command == "eval" and args.protocol:
        get_protocol(args.protocol)
    if args.command == "models" and args.filter[0] != "verify":
        assert nextreid.list_models(args.filter, pretrained=args.pretrained)


def test_every_command_is_shown():
    assert {words[0] for path in PAGES for words in commands(path.read_text(encoding="utf-8"))} >= COMMANDS


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_links_resolve(path):
    for target in _LINK.findall(_FENCE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file) if file else path
        assert place.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in slugs(place.read_text(encoding="utf-8")), f"{path.name} links to {target}"


def test_every_public_name_is_documented():
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    missing = [name for name in nextreid.__all__ if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    assert not missing


def test_the_zoo_is_complete():
    assert render(page("zoo")) == page("zoo"), "run: python -m benchmarks paper page"


def test_every_layer_has_its_section():
    titles = set(re.findall(r"^## (\w+)$", page("layers"), re.MULTILINE))
    assert set(nextreid.list_layers()) <= titles


def test_data_sets_and_settings_are_those_of_the_code():
    assert sorted(row[0] for row in table(page("data"), "Dataset")) == list_datasets()
    fields = {field.name: repr(field.default) for field in dataclasses.fields(PersonsConfig)}
    assert {name: default for name, default, _ in table(page("data"), "Setting")} == fields


def test_recipe_fields_are_those_of_the_code():
    fields = [(field.name, repr(field.default)) for field in dataclasses.fields(Recipe)]
    assert [(name, default) for name, default, _ in table(page("training"), "Field")] == fields


def test_named_recipes_are_those_of_the_code():
    rows = {name: arguments(changes) for name, changes, _ in table(page("training"), "Recipe")}
    assert {name: Recipe(name=name, **changes) for name, changes in rows.items()} == RECIPES


def test_protocols_are_those_of_the_code():
    ignores = {"camera": "its camera", "scene": "its scene", "none": "nowhere: only itself"}
    rows = dict(table(page("training"), "Protocol"))
    assert rows == {name: ignores[get_protocol(name).exclude] for name in rows}
    assert sorted(rows) == list_protocols()


def rows_of_the_paper():
    return table(page("next"), "Paper | Row | Arguments")


@pytest.mark.parametrize(("paper", "row", "code"), rows_of_the_paper(), ids=lambda cell: cell[:24])
def test_rows_of_the_paper_are_arguments(paper, row, code):
    changes = {} if code == "the defaults" else arguments(code)
    model = nextreid.create_model("next_tiny", **changes)
    assert isinstance(model, NEXT) and changes.keys() <= {"head"}
    assert model.model_args["head"].items() >= changes.get("head", {}).items()


def test_the_last_row_of_each_ablation_is_the_default():
    rows = rows_of_the_paper()
    for title in ("Tables 3 and 7", "Table 4", "Table 8"):
        *ablated, whole = [code for paper, _, code in rows if paper == title]
        assert whole == "the defaults" and len({*ablated, whole}) == 4


def test_caption_quality_rows_are_recipes():
    for _, row, code in table(page("next"), "Paper | Row | Recipe"):
        assert get_recipe("next", **arguments(code)).caption_quality == int(row.split()[0]) / 100


def test_every_argument_and_equation_of_next_is_mentioned():
    text = page("next")
    of_head = inspect.signature(NEXTHead).parameters.keys() - {"dim", "num_modalities", "num_tokens", "in_dim"}
    names = [*inspect.signature(NEXT).parameters, *of_head]
    assert "sampling" in names
    assert not [name for name in names if f"`{name}" not in text]
    for number in range(1, 13):
        assert re.search(rf"Eq\. {number}\b", text), f"equation {number}"
