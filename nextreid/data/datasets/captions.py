"""Caption files, published or of an own run: found, and joined to the images by name."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ...captioning import read_captions, split_sentences
from ..sample import Sample

CAPTION_NAMES = {"rgb": "RGB", "nir": "NI", "tir": "TI"}


def caption_home(
    folder: str | Path | None,
    names: Sequence[str],
    modalities: Sequence[str],
    splits: Sequence[str] = ("train", "test"),
) -> Path | None:
    """Return the folder that holds ``{train,test}_{RGB,NI,TI}.json``, None if `folder` is None.

    A file ``*.parquet``, as ``nextreid captions run`` writes, is returned as it is. Else that is `folder`, or its
    subfolder ``text``, or a subfolder with a name of the set (NEXT publishes ``201/``, IDEA ``RGBNT201/text/``) or the
    ``text`` in it: the first that has at least one of the files.

    Args:
        folder: What the user named.
        names: Names that the set's folder may have.
        modalities: Modalities that are read.
        splits: What the files' names begin with.

    Raises:
        FileNotFoundError: If none of the files is in any of the folders.
    """
    if folder is None:
        return None
    folder = Path(folder).expanduser()
    if folder.suffix == ".parquet" and folder.is_file():
        return folder
    files = [_file_name(split, modality) for split in splits for modality in modalities]
    places = [home / text for home in (folder, *(folder / name for name in names)) for text in ("", "text")]
    for place in places:
        if any((place / file).is_file() for file in files):
            return place
    wanted = f"{{{','.join(splits)}}}_{{{','.join(_own_name(m) for m in modalities)}}}.json"
    raise FileNotFoundError(
        f"no caption file in captions={str(folder)!r}"
        + ("" if folder.is_dir() else " (there is no such folder)")
        + f": expected {wanted} in it or in one of {', '.join(('text', *names))}"
    )


def add_captions(
    samples: Sequence[Sample], home: Path | None, split: str, modalities: Sequence[str], notes: list[str]
) -> list[Sample]:
    """Return the samples with the sentences of ``{split}_{RGB,NI,TI}.json`` or of a table, joined by key.

    A caption goes to the image of its own modality only. A file that is not there leaves its modality without.

    Args:
        samples: Samples whose key is the ``item`` of their captions.
        home: What `caption_home` returned.
        split: "train" or "test".
        modalities: Order of the images.
        notes: Extended by the captions without an image and the images without a caption.

    Raises:
        ValueError: If a file cannot be read, or none of its items names an image.
    """
    if home is None:
        return list(samples)
    columns: list[dict[str, tuple[str, ...]]] = []
    for index, modality in enumerate(modalities):
        # a sample of query and gallery is one image
        names = list(dict.fromkeys(sample.key for sample in samples if sample.images[index] is not None))
        path = home if home.is_file() else home / _file_name(split, modality)
        columns.append(_read_column(path, names, split, modality, notes))
    if not any(columns):
        return list(samples)
    return [replace(s, captions=tuple(column.get(s.key, ()) for column in columns)) for s in samples]


def _read_column(
    path: Path, names: Sequence[str], split: str, modality: str, notes: list[str]
) -> dict[str, tuple[str, ...]]:
    """Return the sentences of the named images of one modality, and note what does not meet."""
    if not path.is_file():
        notes.append(f"{split}: no caption file {path.name}, so 0 of {len(names)} {modality} images have a caption")
        return {}
    captions = _read_table(path, split, modality) if path.suffix == ".parquet" else read_captions(path)
    joined = {name: split_sentences(captions[name]) for name in names if name in captions}
    if captions and names and not joined:
        raise ValueError(
            f"{path}: none of its {len(captions)} items names a {modality} image of the {split} split; items "
            f"are {_examples(captions)}, images are {_examples(names)}: choose the caption folder of this set"
        )
    for count, what in (
        (len(captions) - len(joined), f"captions in {path.name} name no {modality} image"),
        (len(names) - len(joined), f"{modality} images have no caption in {path.name}"),
        (sum(not sentences for sentences in joined.values()), f"captions in {path.name} are blank"),
    ):
        if count:
            notes.append(f"{split}: {count} {what}")
    return joined


def _read_table(path: Path, split: str, modality: str) -> dict[str, str]:
    from ...captioning.export import read_table

    told, _ = read_table(path)
    return {entry.key: entry.caption for entry in told if (entry.split, entry.modality) == (split, modality)}


def _file_name(split: str, modality: str) -> str:
    return f"{split}_{_own_name(modality)}.json"


def _own_name(modality: str) -> str:
    return CAPTION_NAMES.get(modality, modality.upper())


def _examples(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")
