"""``nextreid train``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import dataset_arguments, dataset_of, numbers_line, pairs, pick_device


def add(command: Any) -> None:
    """Add the command to the parser."""
    train = command(
        "train",
        run,
        "Train a model and keep the run in a folder.",
        epilog="example:\n  nextreid train --model next_clip_b16 --pretrained --dataset rgbnt201 --root data \\\n      "
        "--captions captions/RGBNT201 \\\n      --out runs/rgbnt201 --set epochs=50 workers=8",
    )
    train.add_argument("--model", required=True, help="a name that 'nextreid models' lists, or local-dir:FOLDER")
    train.add_argument("--pretrained", action="store_true", help="start from the model's pretrained weights")
    train.add_argument(
        "--model-arg", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="arguments of the model"
    )
    dataset_arguments(train)
    train.add_argument("--recipe", default=None, help="a named recipe (default: tiny for *_tiny models, else next)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="fields of the recipe to change"
    )
    train.add_argument("--out", type=Path, required=True, help="run folder")
    train.add_argument("--resume", action="store_true", help="continue the run in --out exactly")
    train.add_argument("--device", default=None, help="such as cpu or cuda (default: cuda where there is one)")
    train.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import torch

    import nextreid
    from nextreid.engine import get_recipe, train

    options = pairs(args.model_arg, "--model-arg", reserved=("model_name", "pretrained"))
    changes = pairs(args.set, "--set")
    device = pick_device(args.device)
    seed = changes.get("seed", 0)
    if isinstance(seed, int):
        torch.manual_seed(seed)  # the first weights are part of the run
    model = nextreid.create_model(args.model, pretrained=args.pretrained, **options)
    tiny = model.pretrained_cfg.architecture.endswith("_tiny")
    recipe = get_recipe(args.recipe or ("tiny" if tiny else "next"), **changes)
    dataset = dataset_of(args)
    report = train(model, dataset, recipe, args.out, resume=args.resume, device=device, progress=not args.no_progress)
    last, best = report.last or {}, report.best or {}
    for title, row in (("last epoch", last), ("best epoch (chosen on these very numbers)", best)):
        if "evaluation" in row:
            print(f"{title} {row['epoch']}: {numbers_line(row['evaluation'])}")
    print(f"run folder: {report.folder}")
