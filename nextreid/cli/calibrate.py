"""``nextreid calibrate``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import (
    dataset_arguments,
    dataset_of,
    embed_options,
    load_model,
    open_text_cache,
    percent,
    pick_device,
    policy_arguments,
    run_arguments,
)


def add(command: Any) -> None:
    """Add the command to the parser."""
    calibrate = command(
        "calibrate",
        run,
        "Find what a model's scores mean: probabilities, thresholds, open-set rates.",
        epilog="The file calibration.json goes into the checkpoint folder, and from there into a gallery.\n\nexample:\n"
        "  nextreid calibrate runs/rgbnt201/last --dataset market1501-mm --root data",
    )
    calibrate.add_argument("checkpoint", help="checkpoint folder, such as runs/x/last, or a model with weights")
    dataset_arguments(calibrate)
    calibrate.add_argument("--split", default="train", help="train or test (default: %(default)s)")
    calibrate.add_argument("--allow-test", action="store_true", help="calibrate on the test split all the same")
    calibrate.add_argument("--protocol", help="which pairs are ignored, such as camera (default: the dataset's own)")
    calibrate.add_argument("--cross", action="store_true", help="also every set of modalities against every other")
    calibrate.add_argument("--limit", type=int, default=4000, help="samples at most (default: %(default)s)")
    calibrate.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    calibrate.add_argument("--no-text", action="store_true", help="without captions")
    calibrate.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="checkpoint, gallery or new folder to write into (default: CHECKPOINT)",
    )
    policy_arguments(calibrate, leak=False)
    run_arguments(calibrate)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid.engine import calibrate
    from nextreid.viz import Table

    out = (args.out or Path(args.checkpoint)).expanduser()
    if args.out is None and not out.is_dir():
        raise FileNotFoundError(f"no folder {out} to write calibration.json into; name one with --out")
    options = embed_options(args, pick_device(args.device))
    dataset, model = dataset_of(args), load_model(args.checkpoint)
    open_text_cache(model, args.text_cache)
    found = calibrate(
        model,
        dataset,
        split=args.split,
        allow_test=args.allow_test,
        protocol=args.protocol,
        cross=args.cross,
        text=not args.no_text,
        limit=args.limit,
        seed=args.seed,
        on_error=args.on_error,
        options=options,
    )
    rows = []
    for name, curve in found.curves.items():
        passed = [
            "–" if each.score is None else f"{each.score:.3f} ({percent(each.true_match_rate)})"
            for each in curve.thresholds
        ]
        pairs = f"{curve.same} and {curve.different} of {curve.identities} identities"
        detected = ["–" if rate is None else percent(rate) for _, _, rate in curve.detection]
        rows.append([name, curve.method, f"{curve.ece:.3f}", *passed, *detected, pairs])
    first = next(iter(found.curves.values()))
    columns = ["shown", "fit", "ECE", *(f"FMR {each.false_match_rate:g}" for each in first.thresholds)]
    columns += [*(f"DIR at FAR {rate:g}" for rate, _, _ in first.detection), "pairs"]
    note = (
        "FMR: score that a pair of two identities passes so rarely, and the share of pairs of one that pass, in percent"
    )
    print(Table("", columns, rows, note).text())
    print(found.write(out))
