"""Run a benchmark, print its rows and append them to its CSV file; ``paper`` runs the tables of the paper."""

import argparse
import importlib
import sys

from .harness import record

SPEED = (
    "counts", "head", "embedding", "int8", "evaluation", "text", "loader", "related", "zoo", "zoo_times", "gpu",
    "models", "imports", "synthetic", "train_step", "demo", "retrieval", "search", "gallery", "startup",
    "caption_merge", "captions", "browse", "figures",
)  # fmt: skip
MODULES = {name: f"benchmarks.speed.{name}" for name in SPEED} | {
    "reliability": "benchmarks.reliability",
    "weights": "benchmarks.weights.build",
    "weights_lr": "benchmarks.weights.lr_search",
    "drop_modality": "benchmarks.paper.drop_modality",
    "real": "benchmarks.real",
    "real_spectra": "benchmarks.real_spectra",
    "real_attributes": "benchmarks.real_attributes",
    "real_scenes": "benchmarks.real_scenes",
}


def main() -> int:
    """Parse the command line and run."""
    if sys.argv[1:2] == ["paper"]:
        from .paper.command import main as paper

        return paper(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"one or more of: {', '.join(MODULES)}; or paper, with its own options")
    parser.add_argument("--list", action="store_true", help="say what each one measures")
    args = parser.parse_args()
    unknown = sorted(set(args.name) - set(MODULES))
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are: {', '.join(MODULES)}")
    for name in MODULES if args.list or not args.name else args.name:
        module = importlib.import_module(MODULES[name])
        print(f"{name}: {(module.__doc__ or '').strip()}")
        if args.name and not args.list:
            print(f"-> {record(name, module.run())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
