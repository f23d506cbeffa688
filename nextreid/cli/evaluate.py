"""``nextreid eval``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import dataset_arguments, dataset_of, load_model, numbers_line, pick_device, run_arguments


def add(command: Any) -> None:
    """Add the command to the parser."""
    evaluation = command(
        "eval",
        run,
        "Evaluate a trained model under a protocol, with its captions and without.",
        epilog="example:\n  nextreid eval runs/rgbnt201/last --dataset rgbnt201 --root data \\\n"
        "      --captions captions/RGBNT201",
    )
    evaluation.add_argument("checkpoint", help="checkpoint folder (config.json and model.safetensors)")
    dataset_arguments(evaluation)
    evaluation.add_argument("--protocol", default=None, help="a named protocol (default: the data set's own)")
    evaluation.add_argument(
        "--missing", nargs="+", action="extend", default=[], metavar="MODALITY", help="modalities to hide at test"
    )
    evaluation.add_argument("--no-text", action="store_true", help="only without captions")
    evaluation.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the numbers here")
    run_arguments(evaluation)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid.engine import evaluate

    device = pick_device(args.device)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    dataset = dataset_of(args)
    model = load_model(args.checkpoint)
    rows = []
    for text in (False,) if args.no_text or not model.uses_text else (True, False):
        report = evaluate(
            model,
            dataset,
            protocol=args.protocol,
            text=text,
            missing=args.missing,
            batch_size=args.batch_size,
            device=device,
            workers=args.workers,
        )
        if text and not report.text:
            continue
        rows.append(report.to_dict())
        print(numbers_line(rows[-1]))
    if args.json:
        from nextreid.engine import write_json

        write_json(args.json, {"checkpoint": args.checkpoint, "dataset": dataset.name, "results": rows})
