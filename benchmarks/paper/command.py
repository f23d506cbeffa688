"""``python -m benchmarks paper``: the paper's tables, row by row."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextreid.cli import Commands, Parser, run_command
from nextreid.cli.arguments import pairs

_DATA = ("paper", "synthetic-tiny", "synthetic-small", "synthetic-full")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see `nextreid.cli.run_command`."""
    parser = Parser(prog="python -m benchmarks paper", description="Run rows of the paper's tables.")
    bench = Commands(parser, "command")
    bench("list", run_list, "List tables and rows with the paper's figures.").add_argument(
        "names", nargs="*", default=["all"], metavar="NAME", help="tables or rows (default: all)"
    )
    run = bench(
        "run",
        run_rows,
        "Run tables or rows for several seeds; finished runs are kept, interrupted ones continue.",
        epilog="examples:\n  python -m benchmarks paper run table3 --data synthetic-small --seeds 3 --jobs 2\n"
        "  python -m benchmarks paper run table1 --root data --captions captions --out bench",
    )
    run.add_argument("names", nargs="+", metavar="NAME", help="tables or rows that 'list' names, or all")
    run.add_argument("--data", choices=_DATA, default="paper", help="(default: each row's own dataset, below --root)")
    run.add_argument("--seeds", type=int, default=1, help="runs of each row, seeds from 0 (default: %(default)s)")
    run.add_argument("--first-seed", type=int, default=0, help="(default: %(default)s)")
    run.add_argument("--out", type=Path, default=Path("bench"), help="folder of runs and tables (default: %(default)s)")
    run.add_argument("--root", type=Path, default=None, help="folder that holds the datasets' folders")
    run.add_argument("--captions", type=Path, default=None, help="folder that holds NEXT/RGBNT201, IDEA/RGBNT201, ...")
    run.add_argument("--recipe", choices=("clean", "authors"), default="clean", help="(default: %(default)s)")
    run.add_argument("--start", type=Path, default=None, help="folder of 'paper pretrain' (default: OUT/start)")
    run.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="recipe, all rows")
    run.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: %(default)s)")
    run.add_argument("--device", default=None, help="such as cpu or cuda")
    run.add_argument("--collect", action="store_true", help="write the tables of what is finished; run nothing")
    mechanism = bench(
        "mechanism",
        run_mechanism,
        "Run the rows of docs/science.md: do captions and masks matter where they should?",
        epilog="settings: plain, crowd, part, gap, identity, no-identity\nexamples:\n"
        "  python -m benchmarks paper mechanism crowd plain --rows C 'no text' oracle --seeds 5\n"
        "  python -m benchmarks paper mechanism --collect",
    )
    mechanism.add_argument("settings", nargs="*", metavar="SETTING", help="(default: all)")
    mechanism.add_argument("--rows", nargs="+", metavar="ROW", help="such as A or 'no text' (default: all)")
    mechanism.add_argument("--seeds", type=int, default=5, help="runs of each row, seeds from 0 (default: %(default)s)")
    mechanism.add_argument("--out", type=Path, default=Path("mechanism"), help="folder of runs and tables")
    mechanism.add_argument("--starts", type=Path, default=None, help="folder of the starts (default: OUT/starts)")
    mechanism.add_argument("--collect", action="store_true", help="write the tables of what is finished; run nothing")
    bench("page", run_page, "Write the tables of docs/zoo.md.")
    pretrain = bench("pretrain", run_pretrain, "Pretrain the image and text tower that synthetic runs start from.")
    pretrain.add_argument(
        "--profile", choices=("tiny", "small", "full"), default="small", help="(default: %(default)s)"
    )
    pretrain.add_argument("--out", type=Path, required=True, help="folder of the towers")
    pretrain.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="its settings")
    return run_command(parser, argv)


def run_list(args: argparse.Namespace) -> None:
    """Run ``python -m benchmarks paper list``."""
    from benchmarks.paper.rows import load_published, load_rows, select_rows

    rows = load_rows()
    for row in select_rows(args.names, rows):
        paper = ", ".join(f"{measure} {value}" for measure, value in row.paper.items()) or "no figure that can be read"
        print(f"{row.name:<18} {row.row:<10} {row.title}; {row.dataset}, captions {row.captions}; paper: {paper}")
    published = load_published()
    methods = len({figure["method"] for figure in published})
    print(f"{len(rows)} rows; {len(published)} figures of {methods} related methods for tables 1 and 2")


def run_rows(args: argparse.Namespace) -> None:
    """Run ``python -m benchmarks paper run``."""
    from benchmarks.paper.rows import load_rows, select_rows
    from benchmarks.paper.runs import BenchSettings, finished, run_bench
    from benchmarks.paper.tables import write_tables

    if args.seeds < 1 or args.jobs < 1:
        raise ValueError("--seeds and --jobs take a number of at least 1")
    rows = select_rows(args.names, load_rows())
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    settings = BenchSettings(
        out=args.out,
        data=args.data,
        root=args.root,
        captions=args.captions,
        recipe=args.recipe,
        overrides=pairs(args.set, "--set", reserved=("seed",)),
        start=args.start,
        device=args.device,
    )

    def tell(result: dict[str, Any], done: int, total: int) -> None:
        report = (result.get("evaluations") or [{}])[0]
        line = f"mAP {100 * report['mAP']:.1f}" if report else f"failed: {result['error']}"
        print(f"[{done}/{total}] {result['digest']} {line}", file=sys.stderr)
        write_tables(finished(rows, seeds, settings), rows, args.out, synthetic=bool(settings.profile))

    if args.collect:
        results = finished(rows, seeds, settings)
        if not results:
            raise FileNotFoundError(f"{args.out} has no finished run of these rows and settings")
    else:
        results = run_bench(rows, seeds, settings, jobs=args.jobs, done=tell)
    for path in write_tables(results, rows, args.out, synthetic=bool(settings.profile)):
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
    print(f"tables and rows: {args.out}")


def run_mechanism(args: argparse.Namespace) -> None:
    """Run ``python -m benchmarks paper mechanism``."""
    from benchmarks.paper import mechanism
    from nextreid._names import unknown

    if args.seeds < 1:
        raise ValueError("--seeds takes a number of at least 1")
    settings, rows = args.settings or list(mechanism.SETTINGS), args.rows or list(mechanism.ROWS)
    for what, names, known in (("setting", settings, mechanism.SETTINGS), ("row", rows, mechanism.ROWS)):
        if wrong := sorted(set(names) - set(known)):
            raise ValueError(unknown(what, wrong, known))
    seeds = range(args.seeds)
    if not args.collect:
        total = len(settings) * len(rows) * len(seeds)
        for done, result in enumerate(mechanism.run_mechanism(args.out, settings, rows, seeds, args.starts), start=1):
            name = f"{result['setting']}, {result['row']}, seed {result['seed']}"
            print(f"[{done}/{total}] {name}: mAP {100 * result['evaluations'][0]['mAP']:.1f}", file=sys.stderr)
    print(mechanism.write(args.out, seeds))
    print(f"tables and rows: {args.out}")


def run_page(args: argparse.Namespace) -> None:
    """Run ``python -m benchmarks paper page``."""
    from benchmarks.paper.page import PAGE, write_page

    write_page()
    print(PAGE)


def run_pretrain(args: argparse.Namespace) -> None:
    """Run ``python -m benchmarks paper pretrain``."""
    from dataclasses import fields, replace

    from benchmarks.paper.pretraining import PretrainConfig, pretrain
    from benchmarks.paper.runs import PRETRAIN, check_start

    changes = pairs(args.set, "--set")
    known = [setting.name for setting in fields(PretrainConfig)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"unknown settings {', '.join(unknown)}; a pretraining has: {', '.join(known)}")
    report = pretrain(args.out, replace(PRETRAIN[args.profile], **changes))
    last = report["history"][-1]
    print(f"{report['samples']} samples, {last['epoch']} epochs, {sum(report['seconds'].values()):.0f} s: {args.out}")
    for row in check_start(args.out)["pointing"]:
        print(
            f"{row['modality']} {row['part']:<9} a sentence points at its part in {100 * row['accuracy']:.0f} % of "
            f"{row['images']} images, chance {100 * row['chance']:.0f} %"
        )
