"""``nextreid captions``: have images described by models, merge, compose, export, audit."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import pairs

_STORE, _RUN, _TABLE = "calls.jsonl", "run.json", "attributes.parquet"
_HELP = """\
SOURCE is a folder with one folder of images per modality (SOURCE/rgb/a.jpg, SOURCE/nir/a.jpg, ...), a CSV or
parquet manifest, or the name of a dataset (with --root).

examples:
  vllm serve Qwen/Qwen2.5-VL-7B-Instruct          a model on this machine, then, in another window:
  nextreid captions run my/images --server http://127.0.0.1:8000 --schema person --out captions
  nextreid captions run rgbnt201 --root data --server http://127.0.0.1:8000 --out captions --dry-run

Keys are read from the environment only. The answers are in OUT/calls.jsonl; the same command goes on where it
stopped. exit status: 0 all is described, 1 some calls are left (run again), 2 a mistake that the message explains"""


def add(command: Any) -> None:
    """Add the group to the parser."""
    captions = command.group("captions", "Have images described by models, and audit captions.")
    run = captions("run", run_run, "Ask models about every image and write captions.", epilog=_HELP)
    run.add_argument("source", metavar="SOURCE", help="folder, manifest or name of a dataset, see below")
    run.add_argument("--root", type=Path, default=None, help="folder of a named dataset, or the one that holds it")
    run.add_argument(
        "--dataset-arg", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="of a named set"
    )
    run.add_argument("--out", type=Path, required=True, help="folder of answers and captions")
    run.add_argument("--schema", default=None, help="person, vehicle or a JSON file (default: the dataset's)")
    whom = run.add_argument_group("whom to ask")
    whom.add_argument("--server", default="http://127.0.0.1:8000", metavar="URL", help="(default: %(default)s)")
    whom.add_argument(
        "--model", action="append", default=[], metavar="NAME[@URL]", help="repeat for several (default: the only one)"
    )
    whom.add_argument("--compose-model", default=None, metavar="NAME[@URL]", help="language model that writes captions")
    whom.add_argument(
        "--key-env", action="append", default=[], metavar="[HOST=]NAME", help="environment variable that holds the key"
    )
    whom.add_argument(
        "--send-images-to-host", action="store_true", help="let images leave this machine for the servers named"
    )
    whom.add_argument("--structured", choices=("json_schema", "structured_outputs", "none"), default="json_schema")
    whom.add_argument("--samples", type=int, default=1, help="answers of each model to an image (default: 1)")
    whom.add_argument("--temperature", type=float, default=0.0, help="(default: %(default)s)")
    whom.add_argument("--max-tokens", type=int, default=1500, help="of one answer (default: %(default)s)")
    means = run.add_argument_group("at what pace and price")
    means.add_argument("--in-flight", type=int, default=8, help="calls at the same time (default: %(default)s)")
    means.add_argument("--rpm", type=float, default=None, help="requests a minute (default: no limit)")
    means.add_argument("--tpm", type=float, default=None, help="tokens a minute (default: no limit)")
    means.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer (default: %(default)s)")
    means.add_argument(
        "--price", action="append", default=[], metavar="[MODEL=]IN,OUT", help="money for a million tokens in and out"
    )
    means.add_argument("--budget", type=float, default=None, help="money that OUT may cost in all")
    means.add_argument("--max-calls", type=int, default=None, help="calls that this run may make")
    means.add_argument("--dry-run", action="store_true", help="say what is missing and what it would cost; ask nothing")
    run.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="images that cannot be read")
    run.add_argument("--no-probe", action="store_true", help="do not see first whether the model can see")
    _merge_arguments(run)

    export = captions("export", run_export, "Merge the answers of a run anew and write captions; asks nothing.")
    export.add_argument("folder", type=Path, metavar="OUT", help="folder of 'nextreid captions run'")
    export.add_argument("--to", type=Path, default=None, help="folder to write (default: the same)")
    _merge_arguments(export)

    compose = captions("compose", run_compose, "Write captions anew from a table of attributes.")
    compose.add_argument("table", type=Path, help="attributes.parquet of a run")
    compose.add_argument("--out", type=Path, required=True, help="folder to write")
    compose.add_argument("--compact", action="store_true", help="fit CLIP's window, telling fields first")

    audit = captions("audit", run_audit, "Say how good captions are: coverage, lengths, damage, agreement, retrieval.")
    audit.add_argument("files", nargs="+", type=Path, metavar="FILES", help="{split}_{RGB,NI,TI}.json, or their folder")
    audit.add_argument("--schema", default=None, help="person or vehicle (default: the one that reads most)")
    audit.add_argument("--protocol", default=None, help="rule of the text-only retrieval, such as rgbnt201")
    audit.add_argument("--out", type=Path, default=None, help="folder for tables (CSV) and a page (HTML)")


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("merging and composing")
    group.add_argument("--rule", choices=("confidence", "agreement"), default="confidence", help="whose answer is kept")
    group.add_argument(
        "--complement", nargs="*", default=None, metavar="FIELD", help="fields merged over modalities; none: no merging"
    )
    group.add_argument("--compact", action="store_true", help="fit CLIP's window, telling fields first")


def run_run(args: argparse.Namespace) -> int:
    """Run ``nextreid captions run``."""
    try:
        return _run(args)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from nextreid.captioning.export import write_run
    from nextreid.captioning.requests import Progress
    from nextreid.captioning.run import Sampling, caption_jobs, estimate, look_at, run_jobs
    from nextreid.captioning.store import Store
    from nextreid.captioning.throttle import Limits

    sampling = Sampling(args.samples, args.temperature, args.max_tokens)
    limits = Limits(args.in_flight, args.rpm, args.tpm, args.timeout)
    servers = [_server(args, name) for name in args.model or [_only_model(args)]]
    writer = _server(args, args.compose_model) if args.compose_model else None
    work, object_type = _work(args)
    schema = _schema(args.schema or object_type)
    images, readable = look_at(work, on_error=args.on_error)
    jobs = caption_jobs(images, readable, schema, servers, sampling)
    path = args.out / _STORE
    if args.dry_run:
        store = Store(path) if path.is_file() else None
        print(_estimate_line(estimate(jobs, images, store), args.budget))
        return 0
    hosts = sorted({s.host for s in [*servers, *([writer] if writer else [])] if s.send_images})
    if hosts:
        print(f"images or attributes go to {', '.join(hosts)}", file=sys.stderr)
    settings = {"limits": limits, "budget": args.budget}
    with Store(path, write=True) as store:
        if store.damaged:
            print(f"{path}: {store.damaged} damaged lines are not used", file=sys.stderr)
        if others := store.count_other_schemas(schema.digest()):
            print(f"{path}: {others} answers belong to another version of the schema; kept, not used", file=sys.stderr)
        write_run(args.out / _RUN, schema, [server.model for server in servers], sampling, images)
        with tqdm(total=len(jobs), unit="call", disable=not sys.stderr.isatty()) as bar:

            def report(progress: Progress) -> None:
                bar.total = progress.jobs
                bar.set_postfix_str(_postfix(progress), refresh=False)
                bar.update(progress.done - bar.n)

            settings |= {"report": report}
            done = run_jobs(jobs, store, max_calls=args.max_calls, probing=not args.no_probe, **settings)
        left = done.jobs - done.done
        print(_done_line(done))
        descriptions, counts = _described(args, schema, [s.model for s in servers], sampling, images, store)
        if writer is not None and not left:
            descriptions, written = _narrate(descriptions, schema, writer, store, settings, args.max_calls, done.calls)
            left += written.jobs - written.done
        _write(args.out, descriptions, schema, counts)
    return 1 if left else 0


def run_export(args: argparse.Namespace) -> None:
    """Run ``nextreid captions export``."""
    from nextreid.captioning.export import read_run
    from nextreid.captioning.store import Store

    schema, models, sampling, images = read_run(args.folder / _RUN)
    with Store(args.folder / _STORE) as store:
        descriptions, counts = _described(args, schema, models, sampling, images, store)
    _write(args.to or args.folder, descriptions, schema, counts)


def run_compose(args: argparse.Namespace) -> None:
    """Run ``nextreid captions compose``."""
    import dataclasses

    from nextreid.captioning.compose import compose
    from nextreid.captioning.export import read_table

    rows, schema = read_table(args.table)
    told = [
        dataclasses.replace(
            row, sentences=compose(row.answers, schema, row.modality, compact=args.compact), composed_by="template"
        )
        for row in rows
    ]
    _write(args.out, told, schema, {})


def run_audit(args: argparse.Namespace) -> None:
    """Run ``nextreid captions audit``."""
    from nextreid.captioning.audit import audit_captions

    audit = audit_captions(args.files, schema=args.schema, protocol=args.protocol)
    print(audit.text())
    if args.out is not None:
        from nextreid.captioning.audit_report import write_audit

        for path in write_audit(audit, args.out):
            print(path)


def _work(args: argparse.Namespace) -> tuple[list[Any], str | None]:
    """Return the images of SOURCE as work, and what they show where that is known."""
    from functools import partial

    from nextreid.captioning.run import Work
    from nextreid.data import MODALITIES, list_datasets, load_dataset, read_folder, read_manifest
    from nextreid.data.image import open_image

    place, kind = Path(args.source).expanduser(), None
    if args.source in list_datasets() and not place.exists():
        options = pairs(args.dataset_arg, "--dataset-arg", reserved=("name", "root", "captions"))
        dataset = load_dataset(args.source, args.root, **options)
        modalities, kind = dataset.modalities, dataset.object_type
        test = {sample.key: sample for sample in (*dataset.query, *dataset.gallery)}
        splits: dict[str, Sequence[Any]] = {"train": dataset.train, "test": list(test.values())}
    elif place.is_file() or place.is_dir():
        modalities = MODALITIES
        splits = {"all": read_manifest(place, modalities) if place.is_file() else read_folder(place)}
    else:
        raise ValueError(
            f"no folder or file {place}, and no dataset of that name; there are {', '.join(list_datasets())}"
        )
    work = [
        Work(sample.key, modality, partial(open_image, image, sample.key, modality), split)
        for split, samples in splits.items()
        for sample in samples
        for modality, image in zip(modalities, sample.images, strict=True)
        if image is not None
    ]
    return work, kind


def _schema(name: str | None) -> Any:
    from nextreid.captioning import Schema, get_schema

    if name is None:
        raise ValueError("say what the images show: --schema person, --schema vehicle, or a JSON file of your own")
    if name.endswith(".json"):
        try:
            return Schema.from_dict(json.loads(Path(name).read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is not JSON: {error}") from error
    return get_schema(name)


def _server(args: argparse.Namespace, name: str) -> Any:
    from urllib.parse import urlsplit

    from nextreid.captioning.client import DEFAULT_KEY, Server, is_loopback, read_key

    model, _, url = name.partition("@http")
    url = f"http{url}" if url else args.server
    local = is_loopback(url)
    host = urlsplit(url).hostname
    variables = dict(entry.split("=", 1) if "=" in entry else ("", entry) for entry in args.key_env)
    others = {urlsplit(f"http{u}").hostname for _, at, u in (m.partition("@http") for m in args.model) if at}
    if "" in variables and others - {host}:
        raise ValueError("several servers: say whose key it is, --key-env HOST=NAME, so that no other one gets it")
    # a key goes to the host it is meant for: OPENAI_API_KEY by default to nobody else
    variable = variables.get(host or "") or variables.get("") or (DEFAULT_KEY if host == "api.openai.com" else None)
    prices = dict(entry.split("=", 1) if "=" in entry else ("", entry) for entry in args.price)
    price = prices.get(model, prices.get(""))
    return Server(
        url=url,
        model=model,
        key=read_key(variable) if variable else None,
        structured=args.structured,
        price=_price(price) if price is not None else None,
        send_images=args.send_images_to_host and not local,
    )


def _price(text: str) -> tuple[float, float]:
    try:
        into, out = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--price takes IN,OUT for a million tokens, such as 0.15,0.60, got {text!r}") from None
    if not (0 <= into < 1e9 and 0 <= out < 1e9):
        raise ValueError(f"--price takes numbers from 0 up, got {text!r}")
    return into, out


def _only_model(args: argparse.Namespace) -> str:
    import asyncio

    from nextreid.captioning.client import Client

    async def ask() -> list[str]:
        async with Client(_server(args, "any")) as client:
            return await client.list_models()

    models = asyncio.run(ask())
    if len(models) != 1:
        there = f"it has {', '.join(models)}" if models else "it does not say what it has, or is not there"
        raise ValueError(f"which model of {args.server}? say --model NAME; {there}")
    return models[0]


def _described(
    args: argparse.Namespace, schema: Any, models: Sequence[str], sampling: Any, images: Sequence[Any], store: Any
) -> tuple[list[Any], dict[str, int]]:
    """Merge and compose what the store holds about the images, in their order."""
    from nextreid.captioning.compose import compose
    from nextreid.captioning.export import describe
    from nextreid.captioning.run import collect, merge_sample

    found = collect(images, schema, models, store, sampling)
    merged = {
        sample: merge_sample(said, schema, rule=args.rule, fields=args.complement)
        for sample, said in found.answers.items()
    }
    descriptions = []
    for image in images:
        best = merged[image.split, image.key].get(image.modality)
        if best is not None:
            told = compose(best.answers, schema, image.modality, compact=args.compact)
            descriptions.append(describe(best, told, image))
    return descriptions, found.counts | {"without": len(images) - len(descriptions)}


def _narrate(
    descriptions: Sequence[Any], schema: Any, writer: Any, store: Any, settings: Any, most: int | None, made: int
) -> tuple[list[Any], Any]:
    """Let a language model write the captions; where it writes nothing of use the template's stay."""
    import collections
    import dataclasses

    from nextreid.captioning.rewriting import narrated, narration_job
    from nextreid.captioning.run import run_jobs

    jobs = [narration_job(schema, one.modality, one.answers, one.sentences, writer) for one in descriptions]
    unique = {job.row_head()["key"]: job for job in jobs}
    left = None if most is None else max(0, most - made)
    done = run_jobs(list(unique.values()), store, max_calls=left, **settings)
    print(_done_line(done))
    told, kept = [], collections.Counter[str]()
    for one, job in zip(descriptions, jobs, strict=True):
        sentences, why = narrated(job, schema, one.sentences, store)
        kept[why] += 1
        by = "template" if why else writer.model
        told.append(dataclasses.replace(one, sentences=sentences, composed_by=by))
    if refused := {why: count for why, count in kept.items() if why}:
        print("template kept: " + ", ".join(f"{why} {count}" for why, count in refused.items()))
    return told, done


def _write(folder: Path, descriptions: Sequence[Any], schema: Any, counts: dict[str, int]) -> None:
    from nextreid.captioning.export import write_captions, write_table

    if counts:
        print(", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count))
    for path in [*write_captions(folder, descriptions), write_table(folder / _TABLE, descriptions, schema)]:
        print(path)


def _postfix(progress: Any) -> str:
    projected = progress.projected_cost
    money = f", spent {progress.spent:.2f}" if progress.spent else ""
    money += f" of about {progress.spent - progress.cost + projected:.2f}" if projected else ""
    return f"{progress.prompt_tokens + progress.completion_tokens} tokens{money}, {progress.failed} failed"


def _done_line(done: Any) -> str:
    line = (
        f"{done.calls} calls in {done.seconds:.0f} s ({done.retries} attempts repeated), {done.prompt_tokens} + "
        f"{done.completion_tokens} tokens, cost {done.cost:.2f}, in all {done.spent:.2f}"
    )
    if done.jobs > done.done:
        why = {"budget": "the budget is used up", "max-calls": "--max-calls is reached"}.get(done.stopped, "")
        line += f"\n{done.jobs - done.done} calls are left" + (f": {why}" if why else "") + "; run again to go on"
        line += "".join(f"\n  {message}" for message in done.failures)
    return line


def _estimate_line(seen: Any, budget: float | None) -> str:
    basis = f"measured on {seen.measured} calls" if seen.measured else "assumed; --max-calls 20 first measures it"
    money = "no price is known (--price)" if seen.cost is None else f"{seen.cost:.2f}"
    line = (
        f"{seen.images} images, {seen.stored} calls are stored, {seen.calls} are missing\n"
        f"tokens: {seen.prompt_tokens} in, {seen.completion_tokens} out ({basis})\n"
        f"cost: {money}; so far {seen.spent:.2f}"
    )
    if budget is not None and seen.cost is not None:
        fits = "is enough" if seen.spent + seen.cost <= budget else "is not enough; the run will stop at it"
        line += f"\nbudget {budget:.2f} {fits}"
    return line
