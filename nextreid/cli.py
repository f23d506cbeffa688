"""The command line: parse, call the rooms, print."""

import argparse
import ast
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextreid.version import __version__

# Rooms are imported inside the commands, so that each loads what it needs.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 for a mistake that the message explains."""
    parser = _parser()
    args = parser.parse_args(argv)
    level = logging.DEBUG if args.verbose > 1 else logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; that is no mistake.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, KeyError, OSError, FloatingPointError) as error:
        if args.verbose > 1:
            raise
        print(f"nextreid {args.command}: {_message(error)}", file=sys.stderr)
        return 2
    return 0


def _message(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Original Traceback" in text:  # torch wraps what a loader's worker raised
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nextreid",
        description="Multi-modal object re-identification: RGB, near-infrared and thermal pictures with captions.",
        epilog="'nextreid COMMAND --help' says what a command takes. 'nextreid demo' needs nothing.",
    )
    parser.add_argument("--version", action="version", version=f"nextreid {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice for tracebacks")

    def command(name: str, run: Any, help: str, **kwargs: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "Train and measure NEXT and its control on made-up persons, with pictures.")
    demo.add_argument("--out", type=Path, default=Path("nextreid-demo"), help="folder to write (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of the data and the training (default: %(default)s)")
    demo.add_argument("--smoke", action="store_true", help="the smallest form: every step, seconds, useless numbers")

    train = command(
        "train",
        _train,
        "Train a model and keep the run in a folder.",
        epilog="example:\n  nextreid train --model next_clip_b16 --pretrained --dataset rgbnt201 --root data \\\n      "
        "--captions captions/RGBNT201 \\\n      --out runs/rgbnt201 --set epochs=50 workers=8",
    )
    train.add_argument("--model", required=True, help="a name that 'nextreid models' lists, or local-dir:FOLDER")
    train.add_argument("--pretrained", action="store_true", help="start from the model's pretrained weights")
    train.add_argument(
        "--model-arg", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="arguments of the model"
    )
    _dataset_arguments(train)
    train.add_argument("--recipe", default=None, help="a named recipe (default: tiny for *_tiny models, else next)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="fields of the recipe to change"
    )
    train.add_argument("--out", type=Path, required=True, help="run folder")
    train.add_argument("--resume", action="store_true", help="continue the run in --out exactly")
    train.add_argument("--device", default=None, help="such as cpu or cuda (default: cuda where there is one)")
    train.add_argument("--no-progress", action="store_true", help="no progress bar")

    evaluation = command(
        "eval",
        _eval,
        "Evaluate a trained model under a protocol, with its captions and without.",
        epilog="example:\n  nextreid eval runs/rgbnt201/last --dataset rgbnt201 --root data \\\n"
        "      --captions captions/RGBNT201",
    )
    evaluation.add_argument("checkpoint", help="checkpoint folder (config.json and model.safetensors)")
    _dataset_arguments(evaluation)
    evaluation.add_argument("--protocol", default=None, help="a named protocol (default: the data set's own)")
    evaluation.add_argument(
        "--missing", nargs="+", action="extend", default=[], metavar="MODALITY", help="modalities to hide at test"
    )
    evaluation.add_argument("--no-text", action="store_true", help="only without captions")
    evaluation.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the numbers here")
    _run_arguments(evaluation)

    extraction = command(
        "extract",
        _extract,
        "Embed pictures: write embeddings.safetensors and index.csv.",
        epilog="SOURCE is a CSV manifest (columns pid, camid, rgb, nir, tir, caption_rgb, ...; paths beside it), or a\n"
        "folder with one folder of pictures per modality: SOURCE/rgb/a.jpg, SOURCE/nir/a.jpg, ...",
    )
    extraction.add_argument("checkpoint", help="checkpoint folder, or the name of a model with pretrained weights")
    extraction.add_argument("source", type=Path, help="folder or manifest, see below")
    extraction.add_argument("--out", type=Path, required=True, help="folder to write")
    extraction.add_argument("--no-text", action="store_true", help="do not read captions")
    extraction.add_argument("--raw", action="store_true", help="do not make the embeddings unit vectors")
    extraction.add_argument("--overwrite", action="store_true", help="replace embeddings that are there")
    _run_arguments(extraction)

    models = command("models", _models, "List models.")
    models.add_argument("filter", nargs="*", default=[""], help="wildcards, such as 'next_*'")
    models.add_argument("--pretrained", action="store_true", help="only those with weights")
    return parser


def _dataset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="name of a data set: rgbnt201, msvr310, synthetic-persons")
    parser.add_argument("--root", type=Path, default=None, help="its folder, or the folder that holds it")
    parser.add_argument("--captions", type=Path, default=None, help="folder with {train,test}_{RGB,NI,TI}.json")
    parser.add_argument(
        "--dataset-arg", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="further arguments of it"
    )


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load pictures (default: %(default)s)")
    parser.add_argument("--device", default=None, help="such as cpu or cuda (default: cuda where there is one)")


def _pairs(items: Sequence[str], option: str, reserved: Sequence[str] = ()) -> dict[str, Any]:
    """``["epochs=3", "name=x"]`` to a table; values are JSON or Python literals, else text."""
    table: dict[str, Any] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise ValueError(f"{option} takes NAME=VALUE pairs, got {item!r}")
        if name in reserved:
            raise ValueError(f"{name!r} is an option of its own and cannot be set by {option}")
        table[name] = _value(value)
    return table


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return text


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def _load_dataset(args: argparse.Namespace) -> Any:
    from nextreid.data import load_dataset

    options = _pairs(args.dataset_arg, "--dataset-arg", reserved=("name", "root", "captions"))
    return load_dataset(args.dataset, args.root, captions=args.captions, **options)


def _load_model(name: str) -> Any:
    import nextreid

    known = nextreid.is_model(name) and not Path(name).exists()
    remote = name.startswith(("local-dir:", "hf-hub:"))
    return nextreid.create_model(name if known or remote else f"local-dir:{name}", pretrained=True)


def _demo(args: argparse.Namespace) -> None:
    from nextreid.engine.demo import run_demo

    run_demo(args.out, seed=args.seed, smoke=args.smoke, say=print)


def _train(args: argparse.Namespace) -> None:
    import torch

    import nextreid
    from nextreid.engine import get_recipe, train

    options = _pairs(args.model_arg, "--model-arg", reserved=("model_name", "pretrained"))
    changes = _pairs(args.set, "--set")
    device = _device(args.device)
    seed = changes.get("seed", 0)
    if isinstance(seed, int):
        torch.manual_seed(seed)  # the first weights are part of the run
    model = nextreid.create_model(args.model, pretrained=args.pretrained, **options)
    tiny = model.pretrained_cfg.architecture.endswith("_tiny")
    recipe = get_recipe(args.recipe or ("tiny" if tiny else "next"), **changes)
    dataset = _load_dataset(args)
    report = train(model, dataset, recipe, args.out, resume=args.resume, device=device, progress=not args.no_progress)
    last, best = report.last or {}, report.best or {}
    for title, row in (("last epoch", last), ("best epoch (chosen on these very numbers)", best)):
        if "evaluation" in row:
            print(f"{title} {row['epoch']}: {_line(row['evaluation'])}")
    print(f"run folder: {report.folder}")


def _eval(args: argparse.Namespace) -> None:
    from nextreid.engine import evaluate

    device = _device(args.device)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    dataset = _load_dataset(args)
    model = _load_model(args.checkpoint)
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
        print(_line(rows[-1]))
    if args.json:
        from nextreid.engine import write_json

        write_json(args.json, {"checkpoint": args.checkpoint, "dataset": dataset.name, "results": rows})


def _line(row: dict[str, Any]) -> str:
    numbers = "  ".join(f"{name} {100 * row[name]:.1f}" for name in ("mAP", "rank-1", "rank-5", "rank-10", "mINP"))
    missing = f", without {', '.join(row['missing'])}" if row.get("missing") else ""
    return (
        f"{numbers}  [protocol {row['protocol']}, {'with' if row['text'] else 'no'} captions at test{missing}, "
        f"{row['valid_queries']} of {row['queries']} queries valid]"
    )


def _extract(args: argparse.Namespace) -> None:
    from nextreid.engine import extract

    device = _device(args.device)
    done = extract(
        _load_model(args.checkpoint),
        args.source,
        args.out,
        text=not args.no_text,
        normalize=not args.raw,
        overwrite=args.overwrite,
        batch_size=args.batch_size,
        device=device,
        workers=args.workers,
    )
    print(f"{done.samples} embeddings of {done.dim} numbers: {done.embeddings} ({done.index.name} says whose)")


def _models(args: argparse.Namespace) -> None:
    import nextreid

    names = nextreid.list_models(args.filter, pretrained=args.pretrained)
    width = max(map(len, names), default=0)
    for name in names:
        summary = (nextreid.model_entrypoint(name).__doc__ or "").strip().splitlines()[0]
        print(f"{name:{width}}  {summary}")
    if not names:
        raise ValueError(f"no model matches {' '.join(args.filter)!r}; 'nextreid models' lists all")


if __name__ == "__main__":
    sys.exit(main())
