"""Custom images as samples, found by their folders and names."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

from .._names import clip, first_few
from .image import ENDINGS, Window, check_windows, is_sidecar, through_window
from .labels import LABELS, number_labels
from .sample import MODALITIES, Sample, as_modalities

_logger = logging.getLogger(__name__)

_ALIASES = {"rgb": ("rgb", "vis"), "nir": ("nir", "ni"), "tir": ("tir", "ti", "th")}
PATTERN = "{split}/{modality}/{pid}_c{camid}_{*}.jpg"
_FIELDS = {
    "split": r"[^/]+?",
    "modality": r"[^/]+?",
    "pid": r"-?\d+",
    "camid": r"-?\d+",
    "sceneid": r"-?\d+",
    **dict.fromkeys((f"{label}:word" for label in LABELS), r"[^/]+?"),
    "*": r"[^/]*?",
    "ext": "|".join(ENDINGS),
}


def read_pattern(
    root: str | Path,
    pattern: str = PATTERN,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    window: Mapping[str, Window] | None = None,
) -> list[Sample]:
    """Read samples from images whose labels are in their paths.

    In the pattern ``{split}``, ``{modality}``, ``{pid}``, ``{camid}`` and ``{sceneid}`` (whole numbers) stand for
    labels, ``{pid:word}`` and the like for labels that are any text, ``{*}`` for any text without a slash, ``{ext}``
    for any image ending; a label that occurs twice must be
    the same twice, and all else is meant literally. Images whose paths differ in ``{modality}`` and ``{ext}`` only
    are one sample. Modality names may be in upper or lower case; "vis" stands for rgb, "ni" for nir, "ti" and "th"
    for tir. Files that do not fit the pattern are left out, and how many is logged; hidden files and what systems
    leave beside images (``Thumbs.db``, ``@eaDir``) do not count.

    Args:
        root: Folder in which the pattern starts.
        pattern: Such as ``"{split}/{modality}/{pid}_c{camid}_{*}.jpg"``; a pattern without ``{modality}`` reads one
            modality, the first declared or "rgb".
        modalities: Order of the images; images of others are left out. None takes those of
            ``("rgb", "nir", "tir")`` that are found; others have to be declared here.
        split: Read only the samples of this split; None reads all.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.

    Returns:
        Samples sorted by key, the path of their first image below `root`. Labels without a place in the pattern
        are -1.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the pattern is wrong, nothing fits it, a modality is unknown, or two images are one.
    """
    _, splits, _, notes = pattern_splits(root, pattern, modalities, window)
    for note in notes:
        _logger.warning("%s: %s", root, note)
    if split is not None and split not in splits:
        there = first_few(sorted(splits), 8)
        raise ValueError(f"{root}: no images with split {split!r} by {pattern!r}; there are {there}")
    samples = splits[split] if split is not None else [sample for found in splits.values() for sample in found]
    return sorted(samples, key=lambda sample: sample.key)


def read_folder(
    root: str | Path,
    modalities: Sequence[str] = MODALITIES,
    window: Mapping[str, Window] | None = None,
    *,
    nested: bool = False,
    plain: bool = False,
) -> list[Sample]:
    """Read unlabelled samples from one folder per modality: ``root/{rgb,nir,tir}/name.jpg``.

    Images with one stem (the file name without its ending) are one sample. Folder names may be in upper or lower
    case; "vis" stands for rgb, "ni" for nir, "ti" and "th" for tir. A modality without a folder, or without this
    image, is missing; how many are missing or left out is logged.

    Args:
        root: Folder of the folders.
        modalities: Order of the images.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        nested: Whether further folders may lie above and below those of the modalities, as in
            ``root/monday/rgb/gate/name.jpg``; then the key is the path without the modality's folder.
        plain: With `nested`: whether all images are of one modality where no folder below `root` is named like one:
            that which `root` is named like, or the first.

    Returns:
        Samples sorted by key (the name of the first image), with pid, camid and sceneid -1.

    Raises:
        FileNotFoundError: If no folder is there.
        ValueError: If two folders stand for one modality, two images have one stem, or there is no image.
    """
    root, modalities = Path(root).expanduser(), as_modalities(modalities)
    layout = f"{root}/{{{','.join(modalities)}}}/name.jpg"
    if plain:
        layout = f"{root}/name.jpg or {layout}"
    if not root.is_dir():
        what = f"{root} is a file, no folder" if root.is_file() else f"no folder {root}"
        raise FileNotFoundError(f"{what}; expected {layout}")
    if nested:
        return _read_nested(root, modalities, window, layout, plain)
    entries = sorted(entry for entry in root.iterdir() if not is_sidecar(entry.name))
    names = {modality: _ALIASES.get(modality.lower(), (modality.lower(),)) for modality in modalities}
    folders = {m: [e.name for e in entries if e.is_dir() and e.name.lower() in names[m]] for m in modalities}
    if not any(folders.values()):
        found = first_few((entry.name for entry in entries), 5) or "nothing"
        raise FileNotFoundError(f"no folder of the form {layout} (found {found} in {root})")
    for modality, several in folders.items():
        if len(several) > 1:
            raise ValueError(f"{root} has {len(several)} folders for {modality}: {first_few(several)}")
    samples = read_pattern(root, "{modality}/{*}.{ext}", modalities, window=window)
    return sorted((replace(s, key=Path(s.key).name) for s in samples), key=lambda sample: sample.key)


def _read_nested(
    root: Path, modalities: tuple[str, ...], window: Mapping[str, Window] | None, layout: str, plain: bool
) -> list[Sample]:
    """Read what `read_folder` does where the first folder named like a modality stands anywhere on the path."""
    modality_of = {name: m for m in modalities for name in (m.lower(), *_ALIASES.get(m.lower(), ()))}
    windows = check_windows(window, modalities)
    found: dict[str, dict[str, str]] = {}
    others = []
    paths = [(path, path.split("/")) for path in sorted(_files(root, None))]
    places = [next((i for i, part in enumerate(p[:-1]) if part.lower() in modality_of), None) for _, p in paths]
    plain = plain and all(place is None for place in places)
    single = modality_of.get(root.resolve().name.lower(), modalities[0])
    for (path, parts), place in zip(paths, places, strict=True):
        stem, _, ending = parts[-1].rpartition(".")
        if ending.lower() not in ENDINGS or (place is None and not plain):
            others.append(path)
            continue
        modality = single if place is None else modality_of[parts[place].lower()]
        moment = normalize("NFC", "/".join((*(part for i, part in enumerate(parts[:-1]) if i != place), stem)))
        files = found.setdefault(moment, {})
        if modality in files:
            raise ValueError(f"{root}: two files are one {modality} image: {files[modality]}, {path}")
        files[modality] = path
    if not found:
        hint = ""
        if root.resolve().name.lower() in modality_of:
            hint = f"; {root.name} holds one modality: name the folder above it"
        elif any(path.rpartition(".")[2].lower() in ENDINGS for path in others):
            hint = f"; images of {modalities[0]} alone are read by the pattern '{{*}}.{{ext}}' (--pattern)"
        raise FileNotFoundError(
            f"no image of the form {layout} in {root} (found {first_few(others) or 'nothing'}){hint}"
        )
    samples = []
    for moment, files in found.items():
        first = next(files[m] for m in modalities if m in files)
        images = tuple(through_window(root / files[m], windows.get(m)) if m in files else None for m in modalities)
        samples.append(Sample(f"{moment}.{first.rpartition('.')[2]}", -1, -1, -1, images))
    if others:
        _logger.warning("%s: %d files left out, no images of %s: %s", root, len(others), modalities, first_few(others))
    for index, modality in enumerate(modalities):
        if missing := sum(sample.images[index] is None for sample in samples):
            _logger.warning("%s: %d of %d samples lack %s", root, missing, len(samples), modality)
    return sorted(samples, key=lambda sample: sample.key)


def pattern_splits(
    root: str | Path, pattern: str, modalities: Sequence[str] | None, window: Mapping[str, Window] | None
) -> tuple[tuple[str, ...], dict[str, list[Sample]], dict[str, dict[int, str]], list[str]]:
    """Read the samples of `read_pattern`.

    Returns:
        The modalities, samples by ``{split}`` or ``""``, what the paths call labels that are numbered differently
        (see `ReIDDataset`), and notes of what is left out.
    """
    root = Path(root).expanduser()
    modalities = None if modalities is None else as_modalities(modalities)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    expression = _compile(pattern)
    paths = sorted(_files(root, pattern.count("/")))
    matches = [(path, match) for path in paths if (match := expression.fullmatch(path))]
    if not matches:
        found = first_few(paths) or "no files"
        raise ValueError(
            f"{root}: no path of the form {clip(pattern)!r}; at that depth there are {found}. Say how the files are "
            "named with pattern=... (--pattern); labels are whole numbers unless it says {pid:word}"
        )
    notes = []
    if len(matches) < len(paths):
        notes.append(f"{len(paths) - len(matches)} files left out, not of the form {pattern!r}")
    single = (modalities or MODALITIES)[0]
    given = [match["modality"] if "{modality}" in pattern else single for _, match in matches]
    chosen, modality_of = _modalities(set(given), modalities, f"{root}, {pattern!r}")
    windows = check_windows(window, chosen)
    moments: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for (path, match), name in zip(matches, given, strict=True):
        modality = modality_of.get(name)
        if modality is None:
            continue
        # named by its labels, not by its folder
        fields = {name: text for name, text in match.groupdict().items() if name not in ("modality", "ext")}
        moment = tuple((name, normalize("NFC", text)) for name, text in fields.items())
        files = moments.setdefault(moment, {})
        if modality in files:
            raise ValueError(f"{root}: by {pattern!r} two files are one {modality} image: {files[modality]}, {path}")
        files[modality] = path
    if ignored := sum(name not in modality_of for name in given):
        others = first_few(map(repr, sorted(set(given) - set(modality_of))))
        notes.append(f"{ignored} images left out, of other modalities: [{others}]")
    columns, names = [], {}
    for field in LABELS:
        cells = [(next(iter(files.values())), dict(moment).get(field, "")) for moment, files in moments.items()]
        numbers, called = number_labels(field, cells)
        columns.append(numbers)
        if called:
            names[field] = called
    splits: dict[str, list[Sample]] = {}
    for (moment, files), (pid, camid, sceneid) in zip(moments.items(), zip(*columns, strict=True), strict=True):
        images = tuple(through_window(root / files[m], windows.get(m)) if m in files else None for m in chosen)
        key = next(files[m] for m in chosen if m in files)
        splits.setdefault(dict(moment).get("split", ""), []).append(Sample(key, pid, camid, sceneid, images))
    for split, samples in splits.items():
        samples.sort(key=lambda sample: sample.key)
        for index, modality in enumerate(chosen):
            if missing := sum(sample.images[index] is None for sample in samples):
                notes.append(f"{split or 'all'}: {missing} of {len(samples)} samples lack {modality}")
    return chosen, splits, names, notes


def _compile(pattern: str) -> re.Pattern[str]:
    """Write the pattern as a regular expression with a group for each field, ``text0``, ``text1``, … for ``{*}``."""
    out, seen = [], set[str]()
    for part in re.split(r"(\{[^{}]*\})", pattern):
        field = part[1:-1]
        if not part.startswith("{"):
            out.append(re.escape(part))
        elif field not in _FIELDS:
            fields = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise ValueError(f"pattern {clip(pattern)!r}: {clip(part)} is not one of {fields}")
        elif (name := field.removesuffix(":word")) in seen:
            out.append(f"(?P={name})")
        else:
            group = f"text{len(out)}" if field == "*" else name
            out.append(f"(?P<{group}>{_FIELDS[field]})")
            seen |= {name} - {"*"}
    return re.compile("".join(out), re.IGNORECASE)


def _modalities(found: Set[str], wanted: Sequence[str] | None, where: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the modalities to read, and the modality of each name that was found in the paths."""
    known = {alias: m for m in wanted or MODALITIES for alias in _ALIASES.get(m.lower(), ())}
    known |= {m.lower(): m for m in wanted or MODALITIES}
    modality_of = {name: known[name.lower()] for name in found if name.lower() in known}
    if unknown := sorted(found - set(modality_of)):
        named = first_few(map(repr, unknown), 8)
        declared = tuple(m for m in MODALITIES if m in modality_of.values())
        if wanted is None:
            raise ValueError(
                f"{where}: unknown modalities [{named}]; declare all that are to be read, in their order, such as "
                f"modalities={(*declared, *map(clip, unknown[:8]))!r}"
            )
        if not modality_of:
            raise ValueError(f"{where}: no images of modalities {tuple(wanted)}; there are [{named}]")
    chosen = tuple(wanted) if wanted is not None else tuple(m for m in MODALITIES if m in modality_of.values())
    return chosen, modality_of


def _files(folder: Path, depth: int | None, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the files that are this many folders deep, None for any depth, as paths below the first folder."""
    real = os.path.realpath(folder)
    if real in above:  # a link back to where we came from
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_sidecar(entry.name):
                continue
            if depth != 0 and entry.is_dir():
                deeper = None if depth is None else depth - 1
                yield from _files(folder / entry.name, deeper, f"{prefix}{entry.name}/", above | {real})
            elif not depth and entry.is_file():
                yield prefix + entry.name
