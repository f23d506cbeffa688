"""``nextreid eval``."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import (
    condition_text,
    dataset_arguments,
    dataset_of,
    embed_options,
    list_argument,
    load_model,
    metrics_line,
    open_text_cache,
    pairs,
    percent,
    pick_device,
    policy_arguments,
    run_arguments,
    short_names,
)


def add(command: Any) -> None:
    """Add the command to the parser."""
    evaluation = command(
        "eval",
        run,
        "Evaluate trained models under a protocol, with captions and without; several are compared with the first.",
        epilog="example:\n  nextreid eval runs/rgbnt201/last --dataset rgbnt201 --root data \\\n"
        "      --captions captions/RGBNT201\n\nthermal queries in a gallery of colour images:\n"
        "  nextreid eval runs/rgbnt201/last --dataset rgbnt201 --root data --protocol 'rgbnt201:tir>rgb'\n\n"
        "several models side by side, with the paired difference to the first:\n"
        "  nextreid eval baseline_tiny next_tiny --dataset synthetic-persons",
    )
    evaluation.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CHECKPOINT",
        help="checkpoint folder, such as runs/x/last, or a model with weights",
    )
    dataset_arguments(evaluation)
    evaluation.add_argument("--protocol", help="such as camera or camera:tir>rgb (default: the dataset's own)")
    list_argument(evaluation, "--missing", "MODALITY", "modalities to hide at test; 'all': every subset in turn")
    evaluation.add_argument("--cross", action="store_true", help="every subset as query against every one as gallery")
    evaluation.add_argument("--no-text", action="store_true", help="only without captions")
    evaluation.add_argument(
        "--text-query", action="store_true", help="search with the queries' captions instead of their images"
    )
    evaluation.add_argument(
        "--adapt",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="first train a copy of the model on the unlabelled images of query and gallery: htt or proxyttt, then "
        "NAME=VALUE settings such as epochs=2 lr=1e-4; the result's protocol says so, the checkpoint stays",
    )
    evaluation.add_argument("--rerank", action="store_true", help="rank by k-reciprocal neighbours")
    evaluation.add_argument(
        "--bootstrap", type=int, default=0, metavar="N", help="95 %% intervals over identities from N draws"
    )
    evaluation.add_argument("--json", type=Path, metavar="FILE", help="also write the metrics here")
    evaluation.add_argument(
        "--save-queries",
        type=Path,
        metavar="FOLDER",
        help="write the metrics of every query, a file for each result, for load_result and compare",
    )
    policy_arguments(evaluation)
    run_arguments(evaluation)


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 means that a result has no metrics, because no query has a match."""
    from nextreid._files import check_out_file, check_out_folder, write_json
    from nextreid.engine import is_main, process_group

    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap takes a number of draws, got {args.bootstrap}")
    matrix = args.cross or args.missing == ["all"]
    if (matrix and args.missing not in ([], ["all"])) or (not matrix and "all" in args.missing):
        raise ValueError("--missing takes names of modalities or 'all'; with --cross it is 'all' or left out")
    if len(args.checkpoint) > 1 and (matrix or args.save_queries):
        raise ValueError("--cross, --missing all and --save-queries are of one model: name one checkpoint")
    if args.text_query:
        return _run_text_query(args)
    if args.adapt and (matrix or ">" in (args.protocol or "")):
        raise ValueError(
            "--adapt is for one set of modalities, of query and gallery both: leave out --cross, --missing "
            "all, or the modalities of --protocol"
        )
    device = pick_device(args.device)
    json_file, queries = (path and path.expanduser() for path in (args.json, args.save_queries))
    if json_file:
        check_out_file(json_file)
    if queries:
        check_out_folder(queries, ("*.safetensors",))
    with process_group(device):
        dataset, names = dataset_of(args), short_names(args.checkpoint)
        results: list[dict[str, Any]] = []
        compared = []
        for name, checkpoint in zip(names, args.checkpoint, strict=True):
            model = load_model(checkpoint)
            open_text_cache(model, args.text_cache)
            model = _adapted(args, model, dataset, device) if args.adapt else model
            reports = _reports(args, model, dataset, matrix, device)
            if not is_main():
                continue
            rows = []
            for cells in reports:
                rows += [_row(cell, args.bootstrap, queries) for cell in cells]
                if args.cross:
                    print(_cross_tables(cells))
                elif matrix:
                    print(_table(cells, dataset.modalities))
                else:
                    print(_line(rows[-1]) if len(names) == 1 else f"{name}: {_line(rows[-1])}")
            trained_on = model.pretrained_cfg.trained_on
            about = {"checkpoint": checkpoint, "dataset": dataset.name, "trained_on": trained_on}
            results.append({**about, "results": rows})
            compared.append((name, reports[0][0]))
        if not is_main():
            return 0
        written = results[0]
        if len(names) > 1:
            table, differences = _comparison(compared)
            print(table)
            written = {"models": results, "differences": differences}
        if json_file:
            write_json(json_file, written)
    return int(any("hint" in row for each in results for row in each["results"]))


def _adapted(args: argparse.Namespace, model: Any, dataset: Any, device: str) -> Any:
    """A copy of the model that was trained on at test."""
    from nextreid.engine import adapt_at_test, get_adaptation
    from nextreid.engine.ablations import hide_modalities
    from nextreid.engine.evaluation import checked

    adaptation = get_adaptation(args.adapt[0], **pairs(args.adapt[1:], "--adapt"))
    condition = hide_modalities(dataset.modalities, args.missing, not args.no_text)
    dataset = checked(model, dataset, args.on_error, args.allow_leak)
    return adapt_at_test(model, dataset, adaptation, condition, embed_options(args, device))


def _comparison(reports: Sequence[tuple[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """A table of several models' results, and each one's paired difference of mAP to the first model's."""
    from nextreid.retrieval import METRICS, compare
    from nextreid.viz import Table

    first, rows, differences = reports[0], [], []
    for name, report in reports:
        difference = "–"
        if report is not first[1] and report.result.num_valid:
            found = compare(first[1].result, report.result)
            value, low, high = (100 * x for x in (found.difference.value, found.difference.low, found.difference.high))
            difference = f"{value:+.1f} [{low:+.1f}, {high:+.1f}], p = {found.p_value:.3f}"
            differences.append({"model": name, "to": first[0], "p_value": found.p_value, **found.difference.to_dict()})
        metrics = [percent(report.result.metric(metric)) for metric in METRICS]
        rows.append([name, "yes" if report.text else "no", *metrics, difference])
    columns = ["model", "captions", *METRICS, f"mAP less {first[0]}'s"]
    note = "differences over the same queries, with 95 % intervals over identities" if differences else ""
    return Table("", columns, rows, note).text(), differences


def _run_text_query(args: argparse.Namespace) -> int:
    """Captions as queries, beside chance."""
    from nextreid._files import check_out_file, write_json
    from nextreid.engine import evaluate_text_query

    given = {"--cross": args.cross, "--missing": args.missing, "--rerank": args.rerank, "--no-text": args.no_text}
    given |= {"--save-queries": args.save_queries, "a second checkpoint": args.checkpoint[1:]}
    if wrong := [name for name, value in given.items() if value]:
        raise ValueError(f"--text-query ranks images for words, of one model: leave {wrong[0]} out")
    device, json_file = pick_device(args.device), args.json and args.json.expanduser()
    if json_file:
        check_out_file(json_file)
    dataset, model = dataset_of(args), load_model(args.checkpoint[0])
    open_text_cache(model, args.text_cache)
    settings = {"protocol": args.protocol, "on_error": args.on_error, "allow_leak": args.allow_leak}
    report = evaluate_text_query(model, dataset, **settings, options=embed_options(args, device))
    row = report.to_dict()
    if args.bootstrap and report.result.num_valid:
        row["bootstrap"] = {"mAP": report.result.bootstrap("mAP", samples=args.bootstrap).to_dict()}
    print(f"{report.modality} captions to images: {_line({**row, 'text': True})}")
    print(f"a random order: {'  '.join(f'{name} {percent(value)}' for name, value in report.chance.items())}")
    if json_file:
        write_json(json_file, {"checkpoint": args.checkpoint[0], "dataset": dataset.name, "results": [row]})
    return int("hint" in row)


def _reports(args: argparse.Namespace, model: Any, dataset: Any, matrix: bool, device: str) -> list[list[Any]]:
    """The reports with captions, if any was read, and without, from one pass."""
    from nextreid.engine import evaluate_conditions, modality_matrix
    from nextreid.engine.ablations import hide_modalities
    from nextreid.retrieval import Rerank

    settings = {
        "protocol": args.protocol,
        "rerank": Rerank() if args.rerank else None,
        "on_error": args.on_error,
        "allow_leak": args.allow_leak,
        "options": embed_options(args, device),
    }
    texts = [False] if args.no_text or not model.uses_text else [True, False]
    if matrix:
        reports = modality_matrix(model, dataset, cross=args.cross, text=texts, **settings)
    else:
        conditions = [hide_modalities(dataset.modalities, args.missing, text) for text in texts]
        reports = evaluate_conditions(model, dataset, conditions, **settings)
    count = len(reports) // len(texts)
    cells = [reports[:count], reports[count:]] if len(texts) == 2 else [reports]
    return cells if any(report.text for report in cells[0]) else cells[-1:]


def _row(report: Any, draws: int, folder: Path | None) -> dict[str, Any]:
    row = report.to_dict()
    if draws and report.result.num_valid:
        metrics = ("mAP", "rank-1", "mINP")
        row["bootstrap"] = {name: report.result.bootstrap(name, samples=draws).to_dict() for name in metrics}
    if folder:
        words = [row["protocol"], "text" if row["text"] else "no-text", *(f"no-{name}" for name in row["missing"])]
        file = folder / (re.sub(r"[^\w+-]+", "_", "_".join(words)) + ".safetensors")
        report.result.save(file)
        row["queries_file"] = str(file)
    return row


def _line(row: dict[str, Any]) -> str:
    line = metrics_line(row)
    for name, interval in row.get("bootstrap", {}).items():
        low, high = 100 * interval["low"], 100 * interval["high"]
        line += f"\n  {name} between {low:.1f} and {high:.1f} in 95 % of {interval['samples']} draws of identities"
    return line


def _table(cells: Sequence[Any], modalities: Sequence[str]) -> str:
    """One line for each set of modalities that query and gallery show."""
    from nextreid.retrieval import METRICS
    from nextreid.viz import Table

    rows = []
    for cell in cells:
        row = cell.to_dict()
        left_out = f", {cell.left_out} samples show none of it" if cell.left_out else ""
        queries = f"{row['valid_queries']} of {row['queries']}{left_out}"
        shown = "+".join(m for m in modalities if m not in cell.missing)
        rows.append([shown, *(percent(row[name]) for name in METRICS), queries])
    return Table(_title(cells), ["shown", *METRICS, "queries"], rows).text()


def _cross_tables(cells: Sequence[Any]) -> str:
    """Two tables, a line for each set that the query shows and a column for each that the gallery shows."""
    from nextreid.viz import Table

    found = {}
    for cell in cells:
        rule = cell.result.protocol
        found["+".join(rule.query_modalities), "+".join(rule.gallery_modalities)] = cell
    queries, galleries = ([*dict.fromkeys(pair[i] for pair in found)] for i in (0, 1))
    notes = {"rank-1": "cells off the diagonal: the modalities' parts of the embeddings are averaged"}
    tables = []
    for name in ("mAP", "rank-1"):
        rows = [
            [q, *(percent(found[q, g].result.metric(name)) if (q, g) in found else "" for g in galleries)]
            for q in queries
        ]
        tables.append(Table("", [f"{name}, query down", *galleries], rows, notes.get(name, "")).text())
    return "\n".join([_title(cells), *tables])


def _title(cells: Sequence[Any]) -> str:
    rule = cells[0].result.protocol.name.partition(":")[0]
    return condition_text({"protocol": rule, "text": any(cell.text for cell in cells)})
