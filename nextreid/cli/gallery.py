"""``nextreid gallery``: a folder of vectors that lasts, searched by images, words and attributes."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextreid._names import show

from .arguments import (
    embed_options,
    list_argument,
    open_text_cache,
    pick_device,
    policy_arguments,
    run_arguments,
    source_arguments,
    windows,
)

_EXAMPLES = """\
examples:
  nextreid gallery create people next_tiny
  nextreid gallery add people photos --pattern '{modality}/{pid:word}_c{camid}_{*}.png'
  nextreid gallery search people --image rgb=a.png nir=b.png tir=c.png --out found.png
  nextreid gallery search people --where upper_clothing_color=red camera=3 time=2026-11-01..
  nextreid gallery delete people --identity anna --compact"""
_FIELDS = ("key", "identity", "camera", "time", "modalities")


def add(command: Any) -> None:
    """Add the group to the parser."""
    group = command.group("gallery", "Keep a gallery of embeddings in a folder, and search it.", epilog=_EXAMPLES)

    create = group("create", run_create, "Make an empty gallery for the embeddings of a model.")
    create.add_argument("folder", help="folder to make, new or empty, or lancedb:URI")
    create.add_argument("checkpoint", help="checkpoint folder, such as runs/x/last, or a model with weights")
    create.add_argument("--embedding", help="which of the model's vectors (default: the one that it is scored by)")
    create.add_argument("--text", action="store_true", help="read the captions of images that are added")
    create.add_argument("--words", action="store_true", help="keep what a search by words needs: --text of search")
    create.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")

    adding = group(
        "add",
        run_add,
        "Embed images and add them, or add what 'nextreid extract' wrote.",
        epilog="SOURCE is a CSV manifest, a folder of images (see 'nextreid extract --help'), or a folder that\n"
        "'nextreid extract' wrote. Stopped half-way, the same command with --known skip continues.",
    )
    adding.add_argument("folder", help="folder of the gallery")
    adding.add_argument("source", type=Path, help="folder or manifest, see below")
    adding.add_argument(
        "--known", choices=("raise", "skip", "replace"), default="raise", help="keys that are there already: stop, ..."
    )
    adding.add_argument("--attributes", metavar="SCHEMA", help="parse captions to attributes: person or vehicle")
    adding.add_argument(
        "--metadata", type=Path, metavar="FILE", help="CSV or parquet file: a column key, the others are kept by name"
    )
    source_arguments(adding)
    policy_arguments(adding, leak=False)
    run_arguments(adding)

    search = group("search", run_search, "Find the nearest entries to images or words, or those that fit conditions.")
    search.add_argument("folder", help="folder of the gallery")
    list_argument(search, "--image", "MODALITY=FILE", "images of one object, such as rgb=a.png tir=b.png")
    search.add_argument("--text", metavar="WORDS", help="what is to be seen, for a gallery that was made with --words")
    _where_argument(search)
    search.add_argument("--top", type=int, default=10, metavar="K", help="answers (default: %(default)s)")
    search.add_argument("--out", type=Path, metavar="FILE", help="draw the answers as an image: .png, .pdf, ...")
    search.add_argument("--json", type=Path, metavar="FILE", help="write the answers here")
    search.add_argument("--match", action="store_true", help="say who --image shows, after 'nextreid calibrate'")
    search.add_argument("--exact", action="store_true", help="compare all vectors, however many there are")
    list_argument(search, "--window", "MODALITY=LOW,HIGH", "for images of 16 bits, see 'nextreid extract --help'")
    search.add_argument("--model", help="where the gallery's model is now, if not where it was")
    search.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")

    delete = group("delete", run_delete, "Delete entries; with --compact their bytes are removed at once.")
    delete.add_argument("folder", help="folder of the gallery")
    list_argument(delete, "--key", "KEY", "entries by their keys")
    delete.add_argument("--identity", help="all entries of an identity")
    delete.add_argument("--before", metavar="TIME", help="entries seen before, such as 2026-11-01 or 2026-11-28T21:00")
    _where_argument(delete)
    delete.add_argument("--compact", action="store_true", help="also remove the bytes of what was deleted")

    merge = group("merge", run_merge, "Merge two identities, or add all entries of another gallery.")
    merge.add_argument("folder", help="folder of the gallery")
    what = merge.add_mutually_exclusive_group(required=True)
    what.add_argument("--identity", nargs=2, metavar=("OLD", "INTO"), help="entries of OLD become entries of INTO")
    what.add_argument("--gallery", metavar="OTHER", help="folder of the other gallery")
    merge.add_argument("--replace", action="store_true", help="replace entries whose keys are in both galleries")

    info = group("info", run_info, "Show what a gallery is of and what it holds.")
    info.add_argument("folder", help="folder of the gallery")
    info.add_argument("--json", type=Path, metavar="FILE", help="also write it here")

    compact = group("compact", run_compact, "Remove the bytes of deleted entries from the disk.")
    compact.add_argument("folder", help="folder of the gallery")

    verify = group("verify", run_verify, "Read everything and compare it with its digests; status 1 if it is damaged.")
    verify.add_argument("folder", help="folder of the gallery")


def run_create(args: argparse.Namespace) -> None:
    """Run ``nextreid gallery create``."""
    from nextreid.engine import create_gallery

    device = pick_device(args.device)
    options = {"embedding": args.embedding, "text": args.text, "words": args.words}
    with create_gallery(args.folder, args.checkpoint, device=device, **options) as gallery:
        about = gallery.about
        print(f"{gallery.folder}: a gallery of {about['model']}, width {gallery.width}, {'+'.join(gallery.modalities)}")


def run_add(args: argparse.Namespace) -> None:
    """Run ``nextreid gallery add``."""
    from nextreid.data import drop_unreadable
    from nextreid.engine import GalleryEncoder, add_extraction, add_samples, load_gallery, open_gallery
    from nextreid.engine.extraction import EMBEDDINGS, read_samples

    if (args.source.expanduser() / EMBEDDINGS).is_file():
        with load_gallery(args.folder, write=True) as gallery:
            done = add_extraction(gallery, args.source, known=args.known)
            print(_added(done, len(gallery)))
        return
    device = pick_device(args.device)
    with open_gallery(args.folder, write=True, device=device) as gallery:
        if isinstance(gallery.encoder, GalleryEncoder):
            open_text_cache(gallery.encoder.model, args.text_cache)
        options = {"pattern": args.pattern, "window": windows(args.window), "captions": args.captions}
        samples, names = read_samples(args.source, gallery.modalities, **options)
        if args.on_error != "raise":
            kept, notes = drop_unreadable({"samples": samples}, gallery.modalities, args.on_error)
            samples = list(kept["samples"])
            for note in notes:
                print(note, file=sys.stderr)
        attributes = _attributes(args.attributes, args.metadata, gallery.modalities)
        done = add_samples(
            gallery,
            samples,
            label_names=names,
            attributes=attributes,
            known=args.known,
            options=embed_options(args, device),
        )
        print(_added(done, len(gallery)))


def run_search(args: argparse.Namespace) -> None:
    """Run ``nextreid gallery search``."""
    from nextreid._files import check_out_file, write_json
    from nextreid.engine import load_gallery, open_gallery
    from nextreid.viz import check_image_path, hits_image, save_image

    where, images = _where(args.where), _images(args.image)
    if not (where or images or args.text):
        raise ValueError("say what to search for: --image MODALITY=FILE, --text WORDS, or --where NAME=VALUE")
    if args.match and not images:
        raise ValueError("--match says who an image shows: give --image MODALITY=FILE")
    if images and args.text:
        raise ValueError("search by --image or by --text, one at a time; --where goes with both")
    out = args.out and check_image_path(args.out)
    for file in filter(None, (out, args.json)):
        check_out_file(file.expanduser())
    if images or args.text:
        device = pick_device(args.device)
        gallery = open_gallery(args.folder, args.model, device=device)
    else:
        gallery = load_gallery(args.folder)
    with gallery:
        exact = True if args.exact else None
        query = _windowed(images, args.window, gallery.modalities) or None
        if args.match and query:
            print(gallery.match(query, where=where))
        hits = gallery.search(query, args.top, text=args.text, where=where, exact=exact)
        if args.json:
            rows = [{**hit.entry.to_dict(), **({} if hit.score is None else {"score": hit.score})} for hit in hits]
            write_json(args.json.expanduser(), rows)
        print(_table(hits, where) if hits else f"no entry found{f'; {out} is not written' if out else ''}")
        if out and hits:
            title = args.text or ", ".join(args.where)
            queries, window = [images] if images else (), windows(args.window)
            drawn = hits_image([hits], gallery.modalities, queries=queries, titles=[title], window=window)
            print(save_image(drawn, out))


def run_delete(args: argparse.Namespace) -> None:
    """Run ``nextreid gallery delete``."""
    from nextreid.engine import load_gallery

    with load_gallery(args.folder, write=True) as gallery:
        count = gallery.delete(
            key=args.key or None, identity=args.identity, before=args.before, where=_where(args.where) or None
        )
        print(f"{count} entries deleted, {len(gallery)} left")
        if args.compact:
            _compact(gallery)
        elif count:
            print(f"their bytes stay on the disk until 'nextreid gallery compact {args.folder}'")


def run_merge(args: argparse.Namespace) -> None:
    """Run ``nextreid gallery merge``."""
    from nextreid.engine import load_gallery

    with load_gallery(args.folder, write=True) as gallery:
        if args.identity:
            print(
                f"{gallery.merge_identities(*args.identity)} entries of {args.identity[0]} are {args.identity[1]} now"
            )
        else:
            with load_gallery(args.gallery) as other:
                print(f"{gallery.merge(other, replace=args.replace)} entries added, {len(gallery)} in all")


def run_info(args: argparse.Namespace) -> None:
    """Run ``nextreid gallery info``."""
    from nextreid._files import check_out_file, write_json
    from nextreid.engine import load_gallery

    if args.json:
        check_out_file(args.json.expanduser())
    with load_gallery(args.folder) as gallery:
        facts = gallery.info()
    if args.json:
        write_json(args.json.expanduser(), facts)
    for name, value in facts.items():
        if value not in (None, {}):
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            text = ", ".join(f"{count} {shown}" for shown, count in value.items()) if isinstance(value, dict) else text
            print(f"{name.replace('_', ' '):<29}{text}")


def run_compact(args: argparse.Namespace) -> None:
    """Run ``nextreid gallery compact``."""
    from nextreid.engine import load_gallery

    with load_gallery(args.folder, write=True) as gallery:
        _compact(gallery)


def run_verify(args: argparse.Namespace) -> int:
    """Run ``nextreid gallery verify``; 1 means that something is damaged."""
    from nextreid._progress import progress_counter
    from nextreid.engine import load_gallery

    with load_gallery(args.folder) as gallery:
        with progress_counter("verify", "vector", shown=True) as count:
            damaged = gallery.verify(count)
        if not damaged:
            facts = gallery.info()
            dead = facts.get("deleted_rows_on_disk")
            more = "" if dead is None else f"; vectors of deleted entries on the disk: {dead}"
            print(f"{facts['entries']} entries are what was added{more}")
    for key in damaged:
        print(f"damaged: {key}")
    return int(bool(damaged))


def _compact(gallery: Any) -> None:
    from nextreid._progress import progress_counter

    before = gallery.info()
    with progress_counter("compact", "vector", shown=True) as count:
        gallery.compact(count)
    after = gallery.info()
    if "bytes" not in after:  # an engine's
        print("deleted entries and earlier versions removed")
        return
    print(
        f"{before['deleted_rows_on_disk']} deleted vectors removed, {after['deleted_rows_on_disk']} left on the disk; "
        f"{before['bytes']:,} bytes before, {after['bytes']:,} now"
    )


def _added(done: Any, total: int) -> str:
    skipped = f", {done.skipped} were there already" if done.skipped else ""
    return f"{done.entries} entries of {done.identities} identities added{skipped}; {total} in all"


def _where_argument(parser: argparse.ArgumentParser) -> None:
    list_argument(
        parser,
        "--where",
        "NAME=VALUE",
        "only entries that fit all: key, identity, camera, time, modalities or metadata; a name that is repeated takes "
        "any of its values; LOW..HIGH is a range, either end may be left out",
    )


def _where(items: Sequence[str]) -> dict[str, Any]:
    where: dict[str, Any] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise ValueError(f"--where takes NAME=VALUE pairs, got {show(item)}")
        low, dots, high = value.partition("..")
        if dots:
            if name in where:
                raise ValueError(f"--where: {show(name)} takes one range, or several values")
            where[name] = (low or None, high or None)
        elif isinstance(where.get(name, []), tuple):
            raise ValueError(f"--where: {show(name)} takes one range, or several values")
        else:
            where.setdefault(name, []).append(value)
    return where


def _images(items: Sequence[str]) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for item in items:
        modality, sign, file = item.partition("=")
        if not sign or not modality or modality in images:
            raise ValueError(f"--image takes MODALITY=FILE, each modality once, got {show(item)}")
        images[modality] = Path(file).expanduser()
        if not images[modality].is_file():
            raise FileNotFoundError(f"no file {images[modality]}")
    return images


def _windowed(images: Mapping[str, Path], given: Sequence[str], modalities: Sequence[str]) -> dict[str, Any]:
    from nextreid.data.image import check_windows, through_window

    chosen = check_windows(windows(given), modalities)
    return {modality: through_window(path, chosen.get(modality)) for modality, path in images.items()}


def _attributes(schema: str | None, table: Path | None, modalities: Sequence[str]) -> Any:
    """What gives the metadata of a sample: attributes of its captions, and its row of a table."""
    from nextreid.captioning import get_schema, parse
    from nextreid.data.table import read_table

    kind = get_schema(schema) if schema else None
    rows: dict[str, dict[str, str]] = {}
    if table:
        columns, lines = read_table(table.expanduser())
        if "key" not in columns:
            raise ValueError(f"{table} has no column 'key', which says whose the other columns are; it has {columns}")
        rows = {cells["key"]: {k: v for k, v in cells.items() if k != "key" and v} for _, cells in lines}

    def attributes(sample: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for caption in reversed(sample.captions):  # the first modality has the last word
            if kind:
                found = parse(" ".join(caption), kind).values
                values |= {name: kind.normalise(name, value)[0] or value for name, value in found.items()}
        return values | rows.get(sample.key, {})

    return attributes if kind or table else None


def _table(hits: Sequence[Any], first: Iterable[str]) -> str:
    from nextreid.viz import Table

    there = dict.fromkeys(name for hit in hits for name in hit.entry.metadata)
    names = list(dict.fromkeys([*(name for name in first if name in there), *there]))[:5]
    rows = []
    for place, hit in enumerate(hits, 1):
        entry = hit.entry
        score = [] if hit.score is None else [f"{hit.score:.3f}"]
        known = [entry.identity, entry.camera, "+".join(entry.modalities), entry.key]
        rows.append([place, *score, *known, *(entry.metadata.get(name) for name in names)])
    scored = ["score"] if hits and hits[0].score is not None else []
    return Table("", ["", *scored, "identity", "camera", "shown", "key", *names], rows).text()
