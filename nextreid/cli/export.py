"""``nextreid export``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import load_model, source_arguments, windows

FORMATS = ("onnx", "torch_export")


def add(command: Any) -> None:
    """Add the command to the parser."""
    export = command(
        "export",
        run,
        "Write a model's embedding as one file that runs without this package.",
        epilog="The file's inputs are images (B, M, 3, H, W), present (B, M) and, for a model that reads captions,\n"
        "text (B, M, D); B is free. It is run first, and left out where it does not give the model's embeddings.",
    )
    export.add_argument("checkpoint", help="checkpoint folder, or the name of a model with pretrained weights")
    export.add_argument("--format", choices=FORMATS, default="onnx", help="(default: %(default)s)")
    export.add_argument("--out", type=Path, required=True, help="file to write, such as model.onnx or model.pt2")
    export.add_argument("--no-text", action="store_true", help="no input for captions: no sample has one")
    export.add_argument("--raw", action="store_true", help="do not make the embeddings unit vectors")
    export.add_argument(
        "--check",
        type=Path,
        metavar="SOURCE",
        help="compare on these images too: a folder or a manifest",
    )
    export.add_argument("--int8", action="store_true", help="in 8-bit integers, if --check with identities allows it")
    source_arguments(export)
    export.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from nextreid._files import check_out_file
    from nextreid.engine.exporter import MIN_COSINE, export
    from nextreid.engine.extraction import read_samples

    out = args.out.expanduser()
    check_out_file(out)
    source = {"pattern": args.pattern, "window": windows(args.window), "captions": args.captions}
    model = load_model(args.checkpoint)
    done = export(
        model,
        out,
        args.format,
        text=False if args.no_text else None,
        normalize=not args.raw,
        check=read_samples(args.check, model.modalities, **source)[0] if args.check else (),
        int8=args.int8,
        overwrite=args.overwrite,
    )
    images = f"{done.synthetic} synthetic samples" + (f" and {done.real} of {args.check}" if done.real else "")
    beside = f" (with its weights in {done.weights.name}, which must lie beside it)" if done.weights else ""
    print(
        f"{done.path}{beside}: {', '.join(done.inputs)} to embeddings of {done.dim} numbers\n"
        f"against the model on {images}: lowest cosine {done.cosine:.6f}, rank agreement {done.rank_agreement:.6f}"
        + (f"\nin 8 bits: {done.int8}" if done.int8 else f" (both at least {MIN_COSINE})")
    )
