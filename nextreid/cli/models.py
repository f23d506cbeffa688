"""``nextreid models`` and ``nextreid models verify PATH``."""

import argparse
import ast
from pathlib import Path
from typing import Any

import nextreid
from nextreid._names import closest, select, show


def add(command: Any) -> None:
    """Add the command to the parser."""
    models = command(
        "models",
        run,
        "List models, or verify a checkpoint.",
        usage="%(prog)s [-h] [-v] [--pretrained] [FILTER ...]\n       %(prog)s verify PATH ...",
        epilog="'verify PATH ...' recomputes the hashes and the golden embedding of checkpoint folders (or of\n"
        "'hf-hub:OWNER/NAME') and exits with 1 if anything differs or is missing.",
    )
    models.add_argument("filter", nargs="*", default=[""], help="wildcards, such as 'next_*'")
    models.add_argument("--pretrained", action="store_true", help="only those with weights")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.filter[0] == "verify":
        return _verify(args.filter[1:])
    summaries, weights = _declared()
    names = select(weights if args.pretrained else [*summaries, *weights], args.filter)
    if not args.pretrained:
        names = list(dict.fromkeys(name.partition(".")[0] for name in names))
    if not names:
        near = [name for word in args.filter for name in closest(word, summaries)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"no model matches {show(' '.join(args.filter))}; {hint}'nextreid models' lists all")
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {summaries[name.partition('.')[0]]}")
    return 0


def _declared() -> tuple[dict[str, str], list[str]]:
    """Return the first line about each registered model, and the names of those with weights, tags included.

    Both are read from the source of the model files: importing them, and torch with them, takes seconds.
    """
    summaries, weights = {}, []
    for path in sorted(Path(nextreid.__file__).parent.joinpath("models").glob("[a-z]*.py")):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and "register_model" in map(ast.unparse, node.decorator_list):
                summaries[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "default_cfgs":
                table: Any = node.value
                for name, cfg in zip(table.args[0].keys, table.args[0].values, strict=True):
                    if {"hf_hub_id", "file", "clip"} & {keyword.arg for keyword in cfg.keywords}:
                        weights.append(name.value)
    return summaries, weights


def _verify(places: list[str]) -> int:
    from nextreid.models import verify_checkpoint

    if not places:
        raise ValueError("verify needs a checkpoint folder or 'hf-hub:OWNER/NAME'")
    failed = 0
    for place in places:
        findings = verify_checkpoint(place)
        print(place)
        for name, ok, note in findings:
            print(f"  {'ok  ' if ok else 'FAIL'}  {name}: {note}")
        failed += any(not finding.ok for finding in findings)
    return int(failed > 0)
