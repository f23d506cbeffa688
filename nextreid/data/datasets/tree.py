"""What published folder trees have in common: folders found, pictures paired by name, captions joined by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..captions import read_captions, split_sentences
from ..sample import Sample

CAPTION_NAMES = {"rgb": "RGB", "nir": "NI", "tir": "TI"}

Labels = tuple[int, int, int]


def choose_modalities(wanted: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return `wanted` as a tuple, or raise ValueError where it names something else than `known`, or twice."""
    known = tuple(known)
    chosen = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if not chosen or not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
        raise ValueError(f"modalities must be one or more of {known}, each once, got {chosen}")
    return chosen


def find_home(root: str | Path, folder: str, splits: Sequence[str], layout: str) -> Path:
    """Return the folder of a data set: `root` itself, or `folder` inside it.

    Args:
        root: What the user named.
        folder: Published name of the data set's folder.
        splits: Folders that must be in it.
        layout: The expected tree, for the message.

    Raises:
        FileNotFoundError: If a folder is missing; names what was looked for and the layout.
    """
    root = Path(root).expanduser()
    found = {home: sum((home / split).is_dir() for split in splits) for home in (root, root / folder)}
    home = max(found, key=found.__getitem__)
    if not found[home]:
        raise FileNotFoundError(
            f"no {folder} in {root}" + ("" if root.is_dir() else " (there is no such folder)") + f": looked for "
            f"{' or '.join(splits)} in {root} and {root / folder}; expected {layout}"
        )
    for split in splits:
        require_folder(home / split, layout)
    return home


def require_folder(folder: Path, layout: str) -> Path:
    """Return `folder`, or raise FileNotFoundError with the expected layout."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected {layout}")
    return folder


def pair_by_name(
    split: str, folders: Mapping[str, Iterable[Path]], parse: Callable[[Path], Labels | None], notes: list[str]
) -> list[Sample]:
    """Make samples of the pictures that have one file name in the modalities' folders, sorted by name.

    Args:
        split: Name of the split, for messages.
        folders: Folders of each modality.
        parse: (pid, camid, sceneid) of a file, None where its name is not of the published form.
        notes: Extended by what was left out or is missing.

    Raises:
        ValueError: If no file name is of the published form, or one name occurs twice in a modality.
    """
    labels: dict[str, Labels] = {}
    pictures: dict[str, dict[str, Path]] = {modality: {} for modality in folders}
    unknown = []
    for modality, places in folders.items():
        for path in (entry for place in places for entry in place.iterdir()):
            parsed = parse(path)
            if parsed is None:
                unknown.append(f"{path.parent.name}/{path.name}")
            elif path.name in pictures[modality]:
                raise ValueError(f"{path.name} occurs twice: {pictures[modality][path.name]} and {path}")
            else:
                labels[path.name] = parsed
                pictures[modality][path.name] = path
    if not labels:
        looked = sorted(str(place) for places in folders.values() for place in places)[:3]
        raise ValueError(
            f"{split}: no picture with a name of the published form in {', '.join(looked)}"
            + (f"; found {_examples(unknown)}" if unknown else ", which hold no files")
        )
    samples = [
        Sample(name, *labels[name], images=tuple(pictures[modality].get(name) for modality in folders))
        for name in sorted(labels)
    ]
    if unknown:
        notes.append(
            f"{split}: {len(unknown)} files left out, their names are not of the published form: " + _examples(unknown)
        )
    for index, modality in enumerate(folders):
        lacking = [sample.key for sample in samples if sample.images[index] is None]
        if lacking:
            notes.append(f"{split}: {len(lacking)} of {len(samples)} samples lack {modality}: {_examples(lacking)}")
    return samples


def add_captions(
    samples: Sequence[Sample], folder: str | Path, split: str, modalities: Sequence[str], notes: list[str]
) -> list[Sample]:
    """Return the samples with the sentences of ``{split}_{RGB,NI,TI}.json``, joined by file name.

    A caption goes to the picture of its own modality only.

    Args:
        samples: Samples keyed by file name.
        folder: Folder of the caption files.
        split: "train" or "test".
        modalities: Order of the pictures.
        notes: Extended by the captions without a picture and the pictures without a caption.

    Raises:
        FileNotFoundError: If a caption file is missing.
        ValueError: If a file cannot be read, or none of its items names a picture.
    """
    folder = Path(folder).expanduser()
    columns: list[dict[str, tuple[str, ...]]] = []
    for index, modality in enumerate(modalities):
        path = folder / f"{split}_{CAPTION_NAMES[modality]}.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"no caption file {path}; captions={str(folder)!r} must be a folder with {{train,test}}_"
                f"{{{','.join(CAPTION_NAMES[m] for m in modalities)}}}.json (a file may hold an empty list)"
            )
        captions = read_captions(path)
        names = [sample.key for sample in samples if sample.images[index] is not None]
        joined = {name: split_sentences(captions[name]) for name in names if name in captions}
        if captions and names and not joined:
            raise ValueError(
                f"{path}: none of its {len(captions)} items names a {modality} picture of the {split} split; items "
                f"are {_examples(captions)}, pictures are {_examples(names)}: choose the caption folder of this set"
            )
        for count, what in (
            (len(captions) - len(joined), f"captions in {path.name} name no {modality} picture"),
            (len(names) - len(joined), f"{modality} pictures have no caption in {path.name}"),
            (sum(not sentences for sentences in joined.values()), f"captions in {path.name} are blank"),
        ):
            if count:
                notes.append(f"{split}: {count} {what}")
        columns.append(joined)
    return [replace(s, captions=tuple(column.get(s.key, ()) for column in columns)) for s in samples]


def _examples(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")
