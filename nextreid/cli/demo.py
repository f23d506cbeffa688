"""``nextreid demo``."""

import argparse
from pathlib import Path
from typing import Any


def add(command: Any) -> None:
    """Add the command to the parser."""
    demo = command("demo", run, "Evaluate NEXT and its baseline on synthetic persons, with images; needs no download.")
    demo.add_argument("--out", type=Path, default=Path("nextreid-demo"), help="folder to write (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of the data and the training (default: %(default)s)")
    demo.add_argument("--train", action="store_true", help="train both first, some minutes, instead of bundled weights")
    demo.add_argument("--smoke", action="store_true", help="the smallest form, to see that every step runs")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid.engine.demo import run_demo

    run_demo(args.out.expanduser(), seed=args.seed, smoke=args.smoke, train=args.train, progress=True, write_line=print)
