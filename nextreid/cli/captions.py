"""``nextreid captions``: have images described by models, merge, compose, export, audit."""

import argparse
import collections
import dataclasses
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .arguments import pairs
from .caption_sources import add_sources, check_names, default_rule, server_of, sources_of

_STORE, _RUN, _TABLE = "calls.jsonl", "run.json", "attributes.parquet"
_HELP = """\
SOURCE is a folder with one folder of images per modality (SOURCE/rgb/a.jpg, SOURCE/nir/a.jpg, ...), a CSV or
parquet manifest, or the name of a dataset (with --root).

examples:
  vllm serve Qwen/Qwen2.5-VL-7B-Instruct          a model on this machine, then, in another window:
  nextreid captions run my/images --server http://127.0.0.1:8000 --schema person --out captions
  nextreid captions run rgbnt201 --root data --server http://127.0.0.1:8000 --out captions --dry-run
  nextreid captions run my/images --classifier attributes.json --schema person --out captions

Keys are read from the environment only. The answers are in OUT/calls.jsonl; the same command continues where it
stopped. exit status: 0 everything is described, 1 some calls are left (run again), 2 an error that the message
explains"""
_COMPACT = "fit CLIP's window, the most distinctive fields first"


def add(command: Any) -> None:
    """Add the group to the parser."""
    captions = command.group("captions", "Have images described by models, and audit captions.")
    run = captions("run", run_run, "Ask models about every image and write captions.", epilog=_HELP)
    run.add_argument("source", metavar="SOURCE", help="folder, manifest or name of a dataset, see below")
    run.add_argument("--root", type=Path, help="folder of a named dataset, or the one that contains it")
    run.add_argument("--dataset-arg", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="of a dataset")
    run.add_argument("--out", type=Path, required=True, help="folder of answers and captions")
    run.add_argument("--schema", help="person, vehicle or a JSON file (default: the dataset's)")
    run.add_argument(
        "--prompt",
        choices=("nextreid", "paper"),
        default="nextreid",
        help="what models are asked: nextreid's instruction, or that of NEXT's Fig. 6 and 7 to the letter",
    )
    run.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="images that cannot be read")
    run.add_argument("--dry-run", action="store_true", help="print what is missing and its cost; ask nothing")
    add_sources(run)
    option = run.add_argument_group("rate limits and budget").add_argument
    option("--in-flight", type=int, default=8, help="calls at the same time (default: %(default)s)")
    option("--rpm", type=float, help="requests a minute (default: no limit)")
    option("--tpm", type=float, help="tokens a minute (default: no limit)")
    option("--timeout", type=float, default=120.0, help="seconds for one answer (default: %(default)s)")
    option("--price", action="append", default=[], metavar="[MODEL=]IN,OUT", help="cost of a million tokens in and out")
    option("--budget", type=float, help="most that OUT may cost in all")
    option("--max-calls", type=int, help="most calls of this run")
    _merge_arguments(run)

    export = captions("export", run_export, "Merge the answers of a run again and write captions; asks nothing.")
    export.add_argument("folder", type=Path, metavar="OUT", help="folder of 'nextreid captions run'")
    export.add_argument("--to", type=Path, help="folder to write (default: the same)")
    _merge_arguments(export)

    compose = captions("compose", run_compose, "Write captions again from a table of attributes.")
    compose.add_argument("table", type=Path, help="attributes.parquet of a run")
    compose.add_argument("--out", type=Path, required=True, help="folder to write")
    _compose_arguments(compose.add_argument)

    audit = captions("audit", run_audit, "Assess captions: coverage, lengths, defects, agreement, retrieval.")
    audit.add_argument("files", nargs="+", type=Path, metavar="FILES", help="{split}_{RGB,NI,TI}.json, or their folder")
    audit.add_argument("--schema", help="person or vehicle (default: the one that parses most)")
    audit.add_argument("--protocol", help="protocol of the text-only retrieval, such as rgbnt201")
    audit.add_argument("--out", type=Path, help="folder for tables (CSV) and a page (HTML)")


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument_group("merging and composing").add_argument
    option(
        "--rule",
        choices=("confidence", "agreement", "probability"),
        help="which answer is kept (default: probability if every source gives probabilities, else confidence)",
    )
    option("--complement", nargs="*", metavar="FIELD", help="fields merged over modalities; none: no merging")
    option(
        "--absence",
        choices=("yields", "counts"),
        help="whether 'none' in one modality yields to a thing seen in another, as in NEXT (default: yields; counts "
        "under the rule probability)",
    )
    _compose_arguments(option)


def _compose_arguments(option: Any) -> None:
    option("--min-confidence", type=_share, default=0.0, metavar="SHARE", help="leave less confident answers out")
    option("--compact", action="store_true", help=_COMPACT)


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"a number from 0 to 1 is expected, got {text[:40]!r}")


def run_run(args: argparse.Namespace) -> int:
    """Run ``nextreid captions run``."""
    from nextreid._progress import progress_bar
    from nextreid.captioning.export import describe_images, write_run
    from nextreid.captioning.pipeline import (
        Sampling,
        caption_jobs,
        estimate,
        index_images,
        open_store,
        run_jobs,
        source_of,
    )
    from nextreid.captioning.store import Store
    from nextreid.captioning.throttle import RateLimits

    sampling = Sampling(args.samples, args.temperature, args.max_tokens)
    limits = RateLimits(args.in_flight, args.rpm, args.tpm, args.timeout)
    requests, object_type = _requests(args)
    schema = _schema(args.schema or object_type, args.prompt)
    servers = sources_of(args, schema)
    writer = server_of(args, args.compose_model, "chat") if args.compose_model else None
    check_names(args, [*servers, *([writer] if writer else [])])
    images = index_images(requests, on_error=args.on_error)
    jobs = caption_jobs(images, schema, servers, sampling)
    path = args.out / _STORE
    if args.dry_run:
        store = Store(path) if path.is_file() else None
        print(f"{len(images)} images, {_estimate_line(estimate(jobs, store), args.budget)}")
        return 0
    if hosts := sorted({s.host for s in (*servers, writer) if s and getattr(s, "send_images", False)}):
        print(f"images or attributes go to {', '.join(hosts)}", file=sys.stderr)
    with open_store(path, schema) as store:
        sources = [source_of(server) for server in servers]
        write_run(args.out / _RUN, schema, sources, sampling, images)
        with progress_bar(None, "describe", "call", shown=True, total=len(jobs)) as bar:

            def report(progress: Any) -> None:
                bar.total = progress.jobs
                bar.set_postfix_str(_postfix(progress), refresh=False)
                bar.update(progress.done - bar.n)

            settings: dict[str, Any] = {"limits": limits, "budget": args.budget, "report": report}
            done = run_jobs(jobs, store, max_calls=args.max_calls, probing=not args.no_probe, **settings)
        print(_done_line(done))
        descriptions, counts = describe_images(images, schema, sources, store, sampling, **_merging(args, sources))
        if writer is not None and done.done == done.jobs:
            settings["max_calls"] = None if args.max_calls is None else max(0, args.max_calls - done.calls)
            descriptions, done = _rewritten(descriptions, schema, writer, store, args.min_confidence, settings)
        _write(args.out, descriptions, schema, counts)
    return int(done.done < done.jobs)


def run_export(args: argparse.Namespace) -> None:
    """Run ``nextreid captions export``."""
    from nextreid.captioning.export import describe_images, read_run
    from nextreid.captioning.pipeline import open_store

    schema, sources, sampling, images = read_run(args.folder / _RUN)
    with open_store(args.folder / _STORE, schema, write=False) as store:
        descriptions, counts = describe_images(images, schema, sources, store, sampling, **_merging(args, sources))
    _write(args.to or args.folder, descriptions, schema, counts)


def run_compose(args: argparse.Namespace) -> None:
    """Run ``nextreid captions compose``."""
    from nextreid.captioning import compose
    from nextreid.captioning.export import read_table

    rows, schema = read_table(args.table)
    for i, row in enumerate(rows):
        options = {"min_confidence": args.min_confidence, "compact": args.compact}
        sentences = compose(row.answers, schema, row.modality, **options)
        rows[i] = dataclasses.replace(row, sentences=sentences, composed_by="template")
    _write(args.out, rows, schema, {})


def run_audit(args: argparse.Namespace) -> None:
    """Run ``nextreid captions audit``."""
    from nextreid._files import write_csv
    from nextreid.captioning import audit_captions
    from nextreid.captioning.audit import printed_cell
    from nextreid.viz import Table, write_report

    audit = audit_captions(args.files, schema=args.schema, protocol=args.protocol)
    tables = [
        Table(title, columns, [list(map(printed_cell, row, columns)) for row in rows], note)
        for title, columns, rows, note in audit.tables.values()
    ]
    print("\n\n".join([*(table.text() for table in tables), *audit.notes]))
    if args.out is not None:
        for name, table in audit.tables.items():
            raw = ([None if isinstance(c, float) and math.isnan(c) else c for c in row] for row in table.rows)
            write_csv(args.out / f"{name}.csv", table.columns, raw)
            print(args.out / f"{name}.csv")
        print(write_report(args.out / "audit.html", title="Captions", intro="\n\n".join(audit.notes), tables=tables))


def _requests(args: argparse.Namespace) -> tuple[list[Any], str | None]:
    """Return the images of SOURCE as caption requests, and the type of object if it is known."""
    from nextreid._files import user_path
    from nextreid.captioning.pipeline import CaptionRequest
    from nextreid.data import MODALITIES, list_datasets, load_dataset, read_folder, read_manifest

    path, object_type = user_path(args.source), None
    if args.source in list_datasets() and not path.exists():
        options = pairs(args.dataset_arg, "--dataset-arg", reserved=("name", "root", "captions"))
        dataset = load_dataset(args.source, args.root, **options)
        modalities, object_type = dataset.modalities, dataset.object_type
        test = {sample.key: sample for sample in (*dataset.query, *dataset.gallery)}
        splits: dict[str, Sequence[Any]] = {"train": dataset.train, "test": list(test.values())}
    elif path.is_file() or path.is_dir():
        modalities = MODALITIES
        splits = {"all": read_manifest(path, modalities) if path.is_file() else read_folder(path)}
    else:
        known = ", ".join(list_datasets())
        raise ValueError(f"no folder or file {path}, and no dataset of that name; there are {known}")
    requests = [
        CaptionRequest(sample.key, modality, image, split)
        for split, samples in splits.items()
        for sample in samples
        for modality, image in zip(modalities, sample.images, strict=True)
        if image is not None
    ]
    return requests, object_type


def _schema(name: str | None, prompt: Any) -> Any:
    from nextreid._files import read_json
    from nextreid.captioning import Schema, get_schema

    if name is None:
        raise ValueError("what do the images show? add --schema person, --schema vehicle, or a JSON file of a schema")
    if name.endswith(".json"):
        table = read_json(Path(name))
        try:
            return get_schema(Schema.from_dict(table), prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return get_schema(name, prompt)


def _merging(args: argparse.Namespace, sources: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of merging and composing as `describe_images` takes them."""
    how = {name: getattr(args, name) for name in ("absence", "min_confidence", "compact")}
    return {"fields": args.complement, "rule": args.rule or default_rule(sources), **how}


def _rewritten(
    descriptions: Sequence[Any], schema: Any, writer: Any, store: Any, min_confidence: float, settings: Any
) -> tuple[list[Any], Any]:
    """Let a language model write the captions; the template's stay where its own are not usable."""
    from nextreid.captioning.pipeline import run_jobs
    from nextreid.captioning.rewrite import read_rewrite, rewrite_job

    jobs = {
        place: rewrite_job(schema, one.modality, one.answers, one.sentences, writer, min_confidence=min_confidence)
        for place, one in enumerate(descriptions)
        if one.sentences  # of what nothing is known, nothing can be written
    }
    done = run_jobs(list({job.row_head()["key"]: job for job in jobs.values()}.values()), store, **settings)
    print(_done_line(done))
    written, kept = list(descriptions), collections.Counter[str]()
    for place, job in jobs.items():
        sentences, why = read_rewrite(job, schema, written[place].sentences, store)
        composed_by = "template" if why else writer.model
        written[place] = dataclasses.replace(written[place], sentences=sentences, composed_by=composed_by)
        kept.update([why] if why else [])
    if kept:
        print("template kept: " + ", ".join(f"{why} {count}" for why, count in kept.items()))
    return written, done


def _write(folder: Path, descriptions: Sequence[Any], schema: Any, counts: dict[str, int]) -> None:
    from nextreid.captioning.export import write_captions, write_table

    if counts:
        print(", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count))
    for path in [*write_captions(folder, descriptions), write_table(folder / _TABLE, descriptions, schema)]:
        print(path)


def _postfix(progress: Any) -> str:
    cost = f", spent {progress.spent:.2f}" if progress.spent else ""
    if projected := progress.projected_cost:
        cost += f" of about {progress.spent - progress.cost + projected:.2f}"
    return f"{progress.prompt_tokens + progress.completion_tokens} tokens{cost}, {progress.failed} failed"


def _done_line(done: Any) -> str:
    line = (
        f"{done.calls} calls in {done.seconds:.0f} s ({done.retries} attempts repeated), {done.prompt_tokens} + "
        f"{done.completion_tokens} tokens, cost {done.cost:.2f}, in all {done.spent:.2f}"
    )
    if done.jobs > done.done:
        why = {"budget": ": the budget is used up", "max-calls": ": --max-calls is reached"}.get(done.stopped, "")
        line += f"\n{done.jobs - done.done} calls are left{why}; run again to continue"
        line += "".join(f"\n  {message}" for message in done.failures)
    return line


def _estimate_line(estimate: Any, budget: float | None) -> str:
    basis = f"measured on {estimate.measured} calls" if estimate.measured else "assumed; measure it with --max-calls 20"
    cost = "no price is known (--price)" if estimate.cost is None else f"{estimate.cost:.2f}"
    line = (
        f"{estimate.stored} calls are stored, {estimate.calls} are missing\n"
        f"tokens: {estimate.prompt_tokens} in, {estimate.completion_tokens} out ({basis})\n"
        f"cost: {cost}; so far {estimate.spent:.2f}"
    )
    if budget is not None and estimate.cost is not None:
        enough = estimate.spent + estimate.cost <= budget
        line += f"\nbudget {budget:.2f} {'is enough' if enough else 'is not enough; the run will stop at it'}"
    return line
