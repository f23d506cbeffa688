"""``nextreid models``."""

import argparse
from typing import Any


def add(command: Any) -> None:
    """Add the command to the parser."""
    models = command("models", run, "List models.")
    models.add_argument("filter", nargs="*", default=[""], help="wildcards, such as 'next_*'")
    models.add_argument("--pretrained", action="store_true", help="only those with weights")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import nextreid

    names = nextreid.list_models(args.filter, pretrained=args.pretrained)
    width = max(map(len, names), default=0)
    for name in names:
        summary = (nextreid.model_entrypoint(name).__doc__ or "").strip().splitlines()[0]
        print(f"{name:{width}}  {summary}")
    if not names:
        raise ValueError(f"no model matches {' '.join(args.filter)!r}; 'nextreid models' lists all")
