"""``nextreid train``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import (
    condition_text,
    dataset_arguments,
    dataset_of,
    device_arguments,
    list_argument,
    metrics_line,
    open_text_cache,
    pairs,
    percent,
    pick_device,
    policy_arguments,
    text_cache_argument,
)


def add(command: Any) -> None:
    """Add the command to the parser."""
    train = command(
        "train",
        run,
        "Train a model and keep the run in a folder.",
        epilog="example:\n  nextreid train --model next_clip_b16 --pretrained --dataset rgbnt201 --root data \\\n      "
        "--captions captions/RGBNT201 \\\n      --out runs/rgbnt201 --set epochs=50 workers=8\n\n"
        "on four GPUs:\n  torchrun --nproc-per-node 4 -m nextreid train ...",
    )
    train.hint = "; fields of the recipe are set by --set, such as --set epochs=50 num_ids=8"
    train.add_argument("--model", required=True, help="a name that 'nextreid models' lists, or a checkpoint folder")
    train.add_argument("--pretrained", action="store_true", help="start from the model's pretrained weights")
    list_argument(train, "--model-arg", "NAME=VALUE", "arguments of the model")
    dataset_arguments(train)
    train.add_argument("--recipe", help="a named recipe (default: tiny for *_tiny models, else next)")
    list_argument(train, "--set", "FIELD=VALUE", "fields of the recipe to change")
    train.add_argument("--out", type=Path, required=True, help="run folder")
    train.add_argument("--resume", action="store_true", help="continue the run in --out exactly")
    train.add_argument(
        "--seeds", type=int, metavar="N", help="N runs, in OUT/seed0 and so on, and their mean and spread"
    )
    policy_arguments(train)
    text_cache_argument(train)
    device_arguments(train)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import torch

    import nextreid
    from nextreid._files import check_out_folder
    from nextreid.engine import get_recipe, is_main, process_group, train, train_seeds
    from nextreid.engine.checkpoint import check_run
    from nextreid.engine.distributed import on_main

    out = args.out.expanduser()
    arguments = pairs(args.model_arg, "--model-arg", reserved=("model_name", "pretrained"))
    changes = pairs(args.set, "--set")
    device = pick_device(args.device)

    def make_model() -> Any:
        model = nextreid.create_model(args.model, pretrained=args.pretrained, **arguments)
        open_text_cache(model, args.text_cache)
        return model

    with process_group(device):
        on_main(lambda: check_run(out, args.resume) if args.seeds is None else check_out_folder(out, ("seed*",)))
        seed = changes.get("seed", 0)
        if isinstance(seed, int):
            torch.manual_seed(seed)  # the first weights are part of the run
        model = make_model()
        tiny = model.pretrained_cfg.architecture.endswith("_tiny")
        recipe = get_recipe(args.recipe or ("tiny" if tiny else "next"), **changes)
        dataset = dataset_of(args)
        options = {
            "resume": args.resume,
            "on_error": args.on_error,
            "allow_leak": args.allow_leak,
            "source": {
                "root": args.root or args.dataset,
                "pattern": args.pattern,
                "captions": args.captions,
                "options": " ".join((*args.dataset_arg, *args.window)) or None,
            },
            "device": device,
            "progress": not args.no_progress,
        }
        if args.seeds is None:
            lines = _run_lines(train(model, dataset, recipe, out, **options))
        else:
            lines = _seeds_lines(train_seeds(make_model, dataset, recipe, out, args.seeds, **options))
        if is_main():
            print("\n".join(lines))


def _run_lines(report: Any) -> list[str]:
    lines = [f"{_title(name)} {row['epoch']}: {metrics_line(row)}" for name, row in report.results().items()]
    return [*lines, f"run folder: {report.folder}"]


def _seeds_lines(report: Any) -> list[str]:
    lines = [f"{_title(name)}: {_spread_line(row)}" for name, row in report.to_dict().items() if name != "seeds"]
    return [*lines, f"{len(report.runs)} seeds: {', '.join(map(str, report.runs))}; run folder: {report.folder}"]


def _title(name: str) -> str:
    return "best epoch (chosen by these very metrics)" if name == "best" else "last epoch"


def _spread_line(row: dict[str, Any]) -> str:
    from nextreid.retrieval import METRICS

    def metric(name: str) -> str:
        spread = "" if row[name]["std"] is None else f" ± {100 * row[name]['std']:.1f}"
        return f"{name} {percent(row[name]['mean'])}{spread}"

    return f"{'  '.join(map(metric, METRICS))}  [{condition_text(row)}]"
