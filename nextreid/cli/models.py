"""``nextreid models`` and ``nextreid models verify PATH``."""

import argparse
from typing import Any


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
    import nextreid

    names = nextreid.list_models(args.filter, pretrained=args.pretrained)
    width = max(map(len, names), default=0)
    for name in names:
        summary = (nextreid.model_entrypoint(name).__doc__ or "").strip().splitlines()[0]
        print(f"{name:{width}}  {summary}")
    if not names:
        raise ValueError(f"no model matches {' '.join(args.filter)!r}; 'nextreid models' lists all")
    return 0


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
