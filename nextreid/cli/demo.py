"""``nextreid demo``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import list_argument, load_model, pick_device, short_names, windows


def add(command: Any) -> None:
    """Add the command to the parser."""
    demo = command(
        "demo",
        run,
        "Evaluate NEXT and its baseline on synthetic persons, or on your own images; needs no download.",
        epilog="example:\n  nextreid demo --images my_photos\n"
        "subfolders named rgb, nir, tir are modalities, the first other ones identities; all images are rgb else",
    )
    demo.add_argument("--out", type=Path, default=Path("nextreid-demo"), help="folder to write (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of the data and the training (default: %(default)s)")
    demo.add_argument("--train", action="store_true", help="train both first, some minutes, instead of bundled weights")
    demo.add_argument("--smoke", action="store_true", help="the smallest form, to see that every step runs")
    demo.add_argument("--images", type=Path, metavar="FOLDER", help="show what models retrieve among these images")
    list_argument(
        demo, "--models", "CHECKPOINT", "with --images: checkpoint folders or models (default: those of the demo)"
    )
    list_argument(
        demo, "--window", "MODALITY=LOW,HIGH", "with --images: raw values of 16 bits that are black and white"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    out = args.out.expanduser()
    if args.images is None:
        from nextreid.engine.demo import run_demo

        if args.models or args.window:
            raise ValueError("--models and --window go with --images")
        run_demo(out, seed=args.seed, smoke=args.smoke, train=args.train, progress=True, write_line=print)
        return
    from nextreid.engine import EmbedOptions
    from nextreid.engine.demo_images import run_demo_on_images
    from nextreid.engine.demo_report import MODELS

    if args.train or args.smoke:
        raise ValueError("--train and --smoke go with the drawn persons; leave them out with --images")
    names = args.models or list(MODELS)
    run_demo_on_images(
        args.images,
        out,
        dict(zip(short_names(names), map(load_model, names), strict=True)),
        seed=args.seed,
        window=windows(args.window),
        options=EmbedOptions(device=pick_device(None), progress=True),
        write_line=print,
    )
