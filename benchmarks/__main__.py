"""Run a benchmark, print its rows and append them to its CSV file."""

import argparse
import importlib

from .harness import record

GOALS = (
    "counts", "head", "embedding", "text", "loader", "peers", "gpu", "models", "imports", "synthetic", "train_step",
    "demo", "retrieval", "caption_merge", "captions", "weights", "weights_rate",
)  # fmt: skip


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("goal", nargs="*", help=f"one or more of: {', '.join(GOALS)}")
    parser.add_argument("--list", action="store_true", help="say what each one measures")
    args = parser.parse_args()
    unknown = sorted(set(args.goal) - set(GOALS))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are: {', '.join(GOALS)}")
    for name in GOALS if args.list or not args.goal else args.goal:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"{name}: {(module.__doc__ or '').strip()}")
        if args.goal and not args.list:
            print(f"-> {record(name, module.run())}")


if __name__ == "__main__":
    main()
