"""``nextreid demo``."""

import argparse
from pathlib import Path
from typing import Any


def add(command: Any) -> None:
    """Add the command to the parser."""
    demo = command("demo", run, "Train and evaluate NEXT and its baseline on synthetic persons, with images.")
    demo.add_argument("--out", type=Path, default=Path("nextreid-demo"), help="folder to write (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of the data and the training (default: %(default)s)")
    demo.add_argument("--pretrained", action="store_true", help="evaluate the bundled weights; train nothing")
    demo.add_argument("--smoke", action="store_true", help="the smallest form, to see that every step runs")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid.engine.demo import run_demo

    run_demo(args.out, seed=args.seed, smoke=args.smoke, pretrained=args.pretrained, write_line=print)
