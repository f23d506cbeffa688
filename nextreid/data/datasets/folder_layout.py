"""What published folder trees have in common: folders found, images paired by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..sample import Sample


class Name(NamedTuple):
    """What an image's path says: the sample it belongs to and its labels."""

    key: str
    pid: int
    camid: int
    sceneid: int = -1


def choose_modalities(wanted: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return `wanted` as a tuple, or raise ValueError where it names something else than `known`, or twice."""
    known = tuple(known)
    chosen = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if not chosen or not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
        raise ValueError(f"modalities must be one or more of {known}, each once, got {chosen}")
    return chosen


def find_home(root: str | Path, places: Sequence[str], splits: Sequence[str], layout: str) -> Path:
    """Return the folder of a dataset: `root` itself, or the first of the places inside it that has most splits.

    Args:
        root: What the user named.
        places: Published names of the dataset's folder.
        splits: Folders that must be in it.
        layout: The expected tree, for the message.

    Raises:
        FileNotFoundError: If a folder is missing; names what was looked for and the layout.
    """
    root = Path(root).expanduser()
    found = {home: sum((home / split).is_dir() for split in splits) for home in (root, *(root / p for p in places))}
    home = max(found, key=found.__getitem__)
    if not found[home]:
        raise FileNotFoundError(
            f"no {places[0]} in {root}" + ("" if root.is_dir() else " (there is no such folder)") + f": looked for "
            f"{' or '.join(splits)} in {' and '.join(map(str, found))}; expected {layout}"
        )
    for split in splits:
        require_folder(home / split, layout)
    return home


def require_folder(folder: Path, layout: str) -> Path:
    """Return `folder`, or raise FileNotFoundError with the expected layout."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected {layout}")
    return folder


def modality_folders(split: Path, names: Mapping[str, str], layout: str) -> dict[str, list[Path]]:
    """Return the folders of each modality in a split: ``split/NAME``, with `names` from modality to NAME."""
    return {modality: [require_folder(split / name, layout)] for modality, name in names.items()}


def identity_folders(split: Path, names: Mapping[str, str], layout: str) -> dict[str, list[Path]]:
    """Return the folders of each modality in a split with a folder per identity: ``split/*/NAME``."""
    homes = [home for home in require_folder(split, layout).iterdir() if home.is_dir()]
    folders = {m: [home / name for home in homes if (home / name).is_dir()] for m, name in names.items()}
    for modality, found in folders.items():
        if not found:
            raise FileNotFoundError(f"no folder {split}/*/{names[modality]}; expected {layout}")
    return folders


def pair_by_name(
    split: str,
    folders: Mapping[str, Iterable[Path]],
    parse: Callable[[Path], Name | None],
    notes: list[str],
    *,
    complete: bool = False,
) -> list[Sample]:
    """Make samples of the images that have one name in the modalities' folders, sorted by key.

    Args:
        split: Name of the split, for messages.
        folders: Folders of each modality.
        parse: What the path of an image says, None where it is not of the published form.
        notes: Extended by what was left out or is missing.
        complete: Leave out samples that lack a modality.

    Raises:
        ValueError: If no file name is of the published form, or one name occurs twice in a modality.
    """
    labels: dict[str, Name] = {}
    images: dict[str, dict[str, Path]] = {modality: {} for modality in folders}
    unknown = []
    for modality, places in folders.items():
        for path in (entry for place in places for entry in place.iterdir()):
            name = parse(path)
            if name is None:
                unknown.append(f"{path.parent.name}/{path.name}")
            elif name.key in images[modality]:
                raise ValueError(f"{name.key} occurs twice: {images[modality][name.key]} and {path}")
            else:
                labels[name.key] = name
                images[modality][name.key] = path
    if not labels:
        looked = sorted(str(place) for places in folders.values() for place in places)[:3]
        raise nothing_of_form(split, ", ".join(looked), unknown)
    samples = [
        Sample(*labels[key], images=tuple(images[modality].get(key) for modality in folders)) for key in sorted(labels)
    ]
    note_unknown(split, unknown, notes)
    lacking = [sample for sample in samples if None in sample.images]
    if complete and lacking:
        named = [f"{s.key} (no {', no '.join(m for m in folders if s.key not in images[m])})" for s in lacking]
        notes.append(
            f"{split}: {len(named)} of {len(samples)} samples left out that lack a modality (complete=False reads "
            f"them): {', '.join(named)}"
        )
        return [sample for sample in samples if None not in sample.images]
    for index, modality in enumerate(folders):
        keys = [sample.key for sample in lacking if sample.images[index] is None]
        if keys:
            notes.append(f"{split}: {len(keys)} of {len(samples)} samples lack {modality}: {examples(keys)}")
    return samples


def note_shared_identities(train: Iterable[Sample], test: Iterable[Sample], notes: list[str]) -> None:
    """Note the identities that are in train and test, and how many of their samples have one key in both."""
    train, test = list(train), list(test)
    shared = {sample.pid for sample in train} & {sample.pid for sample in test}
    if shared:
        named = ", ".join(map(str, sorted(shared)[:10])) + (", …" if len(shared) > 10 else "")
        keys = {sample.key for sample in train} & {sample.key for sample in test}
        notes.append(
            f"train and test share {len(shared)} identities ({named})"
            + (f" and {len(keys)} sample names: {examples(keys)}" if keys else "")
        )


def nothing_of_form(split: str, looked: str, unknown: Sequence[str]) -> ValueError:
    """Return the error of a split in which no file name is of the published form."""
    found = f"; found {examples(unknown)}" if unknown else ", which hold no files"
    return ValueError(f"{split}: no image with a name of the published form in {looked}{found}")


def note_unknown(split: str, unknown: Sequence[str], notes: list[str]) -> None:
    """Note the files that were left out because of their names."""
    if unknown:
        notes.append(
            f"{split}: {len(unknown)} files left out, their names are not of the published form: {examples(unknown)}"
        )


def examples(names: Iterable[str]) -> str:
    """Return the first three names in sorted order, with dots where there are more."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")
