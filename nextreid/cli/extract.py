"""``nextreid extract``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import (
    embed_options,
    load_model,
    open_text_cache,
    pick_device,
    policy_arguments,
    run_arguments,
    source_arguments,
    windows,
)


def add(command: Any) -> None:
    """Add the command to the parser."""
    extraction = command(
        "extract",
        run,
        "Embed images: write embeddings.safetensors and index.csv.",
        epilog="SOURCE is a CSV manifest (columns pid, camid, rgb, nir, tir, caption_rgb, ...; paths beside it), or a\n"
        "folder with one folder of images per modality, at any depth: SOURCE/rgb/a.jpg, SOURCE/nir/a.jpg, ...; with\n"
        "--pattern any folder. examples:\n"
        "  nextreid extract runs/x/last my/images --out vectors --window tir=7000,9000\n"
        "  nextreid extract runs/x/last my/images --out vectors --pattern '{pid}_c{camid}/{modality}.png'",
    )
    extraction.add_argument("checkpoint", help="checkpoint folder, or the name of a model with pretrained weights")
    extraction.add_argument("source", type=Path, help="folder or manifest, see below")
    extraction.add_argument("--out", type=Path, required=True, help="folder to write")
    extraction.add_argument("--no-text", action="store_true", help="do not read captions")
    extraction.add_argument("--raw", action="store_true", help="do not make the embeddings unit vectors")
    extraction.add_argument("--overwrite", action="store_true", help="replace embeddings that are there")
    source_arguments(extraction)
    policy_arguments(extraction, leak=False)
    run_arguments(extraction)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid.engine import extract, is_main, process_group
    from nextreid.engine.distributed import on_main
    from nextreid.engine.extraction import check_extraction, read_samples

    device, out = pick_device(args.device), args.out.expanduser()
    options, window = embed_options(args, device), windows(args.window)
    with process_group(device):
        on_main(lambda: check_extraction(out, args.overwrite))
        model = load_model(args.checkpoint)
        open_text_cache(model, args.text_cache)
        samples, label_names = read_samples(
            args.source, model.modalities, pattern=args.pattern, window=window, captions=args.captions
        )
        done = extract(
            model,
            samples,
            out,
            text=not args.no_text,
            normalize=not args.raw,
            overwrite=args.overwrite,
            on_error=args.on_error,
            options=options,
            label_names=label_names,
        )
        if is_main():
            print(f"{done.samples} embeddings of {done.dim} numbers: {done.embeddings} (samples: {done.index.name})")
