"""``nextreid convert``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import list_argument, pairs


def add(command: Any) -> None:
    """Add the command to the parser."""
    convert = command(
        "convert",
        run,
        "Write a checkpoint folder from third-party weights: a CLIP's towers, or a method's released model.",
        epilog="SOURCE is a .safetensors, .pth, .pt or .bin file. Without --from it is a CLIP in the names of OpenAI,\n"
        "open_clip or timm, and --model says whose towers it fills; with --from METHOD it is what its authors\n"
        "released, such as --from demo; with --from timm any network of timm, which\n"
        "--model-arg image_tower=NAME says. Pickles are read as tensors only (torch.load with weights_only=True,\n"
        "torch 2.10 or later) and in no other way.",
    )
    convert.add_argument("source", type=Path, help="file of weights, see below")
    convert.add_argument("--from", dest="method", metavar="METHOD", help="whose authors released the file; or timm")
    convert.add_argument(
        "--by-order", action="store_true", help="with --from timm: the file has other names in timm's order"
    )
    convert.add_argument("--model", help="the model to fill, such as next_clip_b16; with --from the method's own")
    convert.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    list_argument(convert, "--model-arg", "NAME=VALUE", "arguments of the model")
    convert.add_argument("--overwrite", action="store_true", help="replace a checkpoint folder that is there")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid.models import convert_authors, convert_clip, convert_timm

    reserved = ("method", "source", "model_name", "folder", "overwrite", "pretrained")
    options = pairs(args.model_arg, "--model-arg", reserved=reserved)
    if args.by_order and args.method != "timm":
        raise ValueError("--by-order goes with --from timm: names are not guessed for a CLIP or a method")
    if args.method and args.method != "timm":
        done_authors = convert_authors(
            args.method, args.source, args.out, args.model, overwrite=args.overwrite, **options
        )
        for note in done_authors.notes:
            print(note)
        read = ", ".join(f"{name}={value}" for name, value in done_authors.arguments.items())
        print(f"{done_authors.filled} tensors fill {done_authors.model}; read from their shapes: {read}")
        print(done_authors.folder)
        return
    if not args.model:
        raise ValueError("say which model a CLIP's towers fill (--model), or whose released weights these are (--from)")
    if args.method:
        options["by_order"] = args.by_order
    convert = convert_timm if args.method else convert_clip
    done = convert(args.source, args.model, args.out, overwrite=args.overwrite, **options)
    for note in done.notes:
        print(note)
    found = done.mapping
    print(f"{found.image} tensors fill the image tower and {found.text} the text tower ({found.naming} names)")
    if found.grids:
        (rows, columns), (new_rows, new_columns) = found.grids
        print(f"position table resampled from {rows}x{columns} to {new_rows}x{new_columns} patches")
    if found.left_out:
        more = f" and {len(found.left_out) - 5} more" if len(found.left_out) > 5 else ""
        print(f"left out: {', '.join(found.left_out[:5])}{more}")
    print(
        f"the towers compute with {done.activation}; weights do not say which activation they need: QuickGELU for "
        "OpenAI's, GELU for most others (--model next with towers of plain names)"
    )
    print(f"untrained: {', '.join(done.untrained) or 'nothing'}")
    print(done.folder)
