"""What the readers of published trees share: folders found, images paired, captions joined, query lists compared."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..._names import first_few
from ..captions import add_captions, caption_home
from ..image import ENDINGS, is_sidecar
from ..sample import ReIDDataset, Sample, as_modalities
from ..split import with_match


class Name(NamedTuple):
    """What an image's path says: the sample it belongs to and its labels."""

    key: str
    pid: int
    camid: int
    sceneid: int


def image_files(folder: Path) -> list[Path]:
    """Return what lies in a folder, but for what systems leave beside images."""
    return [entry for entry in folder.iterdir() if not is_sidecar(entry.name)]


class PublishedTree:
    """One published folder tree while it is read; a subclass describes each dataset.

    Args:
        root: The dataset's folder or the one that holds it.
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or one that holds it, or None.
        modalities: Which modalities to read, in which order.
        complete: Leave out samples with missing modalities.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing; names what was looked for and the layout.
        ValueError: If a modality is unknown or named twice.
    """

    name: ClassVar[str]  # of the dataset and of its protocol
    object_type: ClassVar[str] = "vehicle"
    homes: ClassVar[Sequence[str]]  # published names of the dataset's folder
    captions: ClassVar[Sequence[str]]  # names that the folder of its captions may have
    splits: ClassVar[Sequence[str]]  # folders that must be there
    folders: ClassVar[Mapping[str, str]] = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
    by_identity: ClassVar[bool] = False  # whether each identity has such folders, rather than each split
    layout: ClassVar[str]  # the expected tree, for messages
    form: ClassVar[str]  # regular expression of the names with groups pid, camid, sceneid: see `parse`
    key: ClassVar[str] = "{name}"  # of a sample, by its file name and these groups
    first_camera: ClassVar[int] = 1

    def __init__(
        self, root: str | Path, captions: str | Path | None, modalities: Sequence[str], complete: bool = False
    ) -> None:
        chosen, known = as_modalities(modalities), tuple(self.folders)
        if not set(chosen) <= set(known):
            raise ValueError(f"modalities must be one or more of {known}, each once, got {chosen}")
        self.modalities = chosen
        self.home = self._find_home(Path(root).expanduser())
        self.texts = caption_home(captions, self.captions, chosen)
        self.complete = complete
        self.notes: list[str] = []
        self.label_names: dict[str, dict[int, str]] = {"camid": {}}  # see `ReIDDataset`

    def parse(self, path: Path) -> Name | None:
        """Return what the name of an image says (``identity/name`` if `by_identity`), None where it is not `form`."""
        name = f"{path.parent.parent.name}/{path.name}" if self.by_identity else path.name
        match = re.fullmatch(rf"{self.form}\.({'|'.join(ENDINGS)})", name, re.IGNORECASE)
        if match is None:
            return None
        label = match.groupdict()
        key = self.key.format(name=path.name, **label)
        camid = int(label["camid"]) - self.first_camera
        self.label_names["camid"][camid] = label["camid"]
        return Name(key, int(label["pid"]), camid, int(label.get("sceneid") or -1))

    def samples(self, split: str, folder: str) -> list[Sample]:
        """Return the samples of a folder, images paired by name without its ending, without captions, sorted by key.

        The key is the name of the first image.
        """
        folders = {modality: self._folders_of(folder, modality) for modality in self.modalities}
        labels: dict[str, Name] = {}
        images: dict[str, dict[str, Path]] = {modality: {} for modality in folders}
        unknown = []
        for modality, places in folders.items():
            for path in (entry for place in places for entry in image_files(place)):
                name = self.parse(path)
                if name is None:
                    unknown.append(f"{path.parent.name}/{path.name}")
                    continue
                stem = name.key.rpartition(".")[0]
                if stem in images[modality]:
                    raise ValueError(f"{name.key} occurs twice: {images[modality][stem]} and {path}")
                labels.setdefault(stem, name)
                images[modality][stem] = path
        looked = sorted(str(place) for places in folders.values() for place in places)
        self.note_unknown(split, looked, unknown, found=bool(labels))
        columns = images.values()
        samples = [Sample(*labels[stem], tuple(column.get(stem) for column in columns)) for stem in sorted(labels)]
        samples.sort(key=lambda sample: sample.key)
        partial = [sample for sample in samples if None in sample.images]
        if self.complete and partial:
            lacking = [[m for m, image in zip(folders, s.images, strict=True) if image is None] for s in partial]
            named = [f"{s.key} (no {', no '.join(m)})" for s, m in zip(partial, lacking, strict=True)]
            self.notes.append(
                f"{split}: {len(named)} of {len(samples)} samples left out that lack a modality (complete=False reads "
                f"them): {first_few(named, 20)}"
            )
            return [sample for sample in samples if None not in sample.images]
        for index, modality in enumerate(folders):
            if keys := [sample.key for sample in partial if sample.images[index] is None]:
                self.notes.append(
                    f"{split}: {len(keys)} of {len(samples)} samples lack {modality}: {first_few(sorted(keys))}"
                )
        return samples

    def read(self, split: str, folder: str) -> tuple[Sample, ...]:
        """Return the samples of a folder with the captions of a split."""
        return self._captioned(self.samples(split, folder), split)

    def query_and_gallery(self, folder: str, split: str = "test") -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        """Return the samples of the folder ``query``, rebuilt where it is missing, and of a gallery folder.

        A query that is a gallery sample too, by its key, becomes that very object.
        """
        listed = self.samples("query", "query") if (self.home / "query").is_dir() else None
        query = listed or []
        both = self._captioned([*query, *self.samples(split, folder)], "test")
        gallery = {sample.key: sample for sample in both[len(query) :]}
        entries = tuple(gallery.values())
        if listed is None:
            return self.rebuild_query(entries), entries
        return tuple(gallery.get(sample.key, sample) for sample in both[: len(query)]), entries

    def rebuild_query(self, gallery: Sequence[Sample]) -> tuple[Sample, ...]:
        """Return the gallery samples that have a match from another camera, where the query list is not available."""
        query = with_match(gallery, gallery, "camera")
        self.notes.append(
            f"query: no folder query, and its list is not published: all {len(query)} of {len(gallery)} gallery "
            "samples that have a match from another camera are queries; metrics do not compare with those on the "
            "published list"
        )
        return query

    def note_difference(
        self, rule: Iterable[Sample], folder: Iterable[Sample], names: tuple[str, str], used: str
    ) -> None:
        """Note where the queries by a rule and those in a folder differ, by name, and which of the two is used."""
        by_rule, in_folder = ({sample.key for sample in samples} for samples in (rule, folder))
        if by_rule != in_folder:
            marks = [" (used)" if used == which else "" for which in ("rule", "folder")]
            self.notes.append(
                f"query: the {names[0]} rule gives {len(by_rule)} samples{marks[0]}, folder {names[1]} has "
                f"{len(in_folder)}{marks[1]}; {len(by_rule - in_folder)} only by the rule, "
                f"{len(in_folder - by_rule)} only in the folder"
            )

    def note_unknown(self, split: str, looked: Sequence[str], unknown: Sequence[str], found: bool) -> None:
        """Note the files that were left out because of their names; raise ValueError where no image was found."""
        if not found:
            why = f"; found {first_few(sorted(unknown))}" if unknown else ", which hold no files"
            raise ValueError(f"{split}: no image with a name of the published form in {', '.join(looked[:3])}{why}")
        if unknown:
            what = f"{len(unknown)} files left out, their names are not of the published form"
            self.notes.append(f"{split}: {what}: {first_few(sorted(unknown))}")

    def load(self, train_folder: str, gallery_folder: str, gallery_split: str = "test") -> ReIDDataset:
        """Return the dataset of a tree whose queries are in the folder ``query``, or rebuilt."""
        train = self.read("train", train_folder)
        return self.dataset(train, *self.query_and_gallery(gallery_folder, gallery_split))

    def dataset(self, train: tuple[Sample, ...], query: tuple[Sample, ...], gallery: tuple[Sample, ...]) -> ReIDDataset:
        """Return the dataset; identities that train and test share are noted."""
        note_shared_identities(train, (*query, *gallery), self.notes)
        notes = tuple(self.notes)
        names = {field: dict(sorted(called.items())) for field, called in self.label_names.items()}
        return ReIDDataset(self.name, self.modalities, self.object_type, self.name, train, query, gallery, notes, names)

    def _captioned(self, samples: Sequence[Sample], split: str) -> tuple[Sample, ...]:
        return tuple(add_captions(samples, self.texts, split, self.modalities, self.notes))

    def _find_home(self, root: Path) -> Path:
        """Return `root` itself, or the first of the published places inside it, whichever has most splits."""
        homes = (root, *(root / home for home in self.homes))
        found = {home: sum((home / split).is_dir() for split in self.splits) for home in homes}
        home = max(found, key=found.__getitem__)
        if not found[home]:
            raise FileNotFoundError(
                f"no {self.homes[0]} in {root}"
                + ("" if root.is_dir() else " (there is no such folder)")
                + f": looked for {' or '.join(self.splits)} in {' and '.join(map(str, found))}; expected {self.layout}"
            )
        for split in self.splits:
            self._require(home / split)
        return home

    def _folders_of(self, split: str, modality: str) -> list[Path]:
        """Return the folders of a modality in a split: ``split/NAME``, or ``split/*/NAME`` for each identity."""
        home, name = self._require(self.home / split), self.folders[modality]
        if not self.by_identity:
            return [self._require(home / name)]
        folders = [identity / name for identity in image_files(home) if (identity / name).is_dir()]
        if not folders:
            raise FileNotFoundError(f"no folder {home}/*/{name}; expected {self.layout}")
        return folders

    def _require(self, folder: Path) -> Path:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; expected {self.layout}")
        return folder


def note_shared_identities(train: Iterable[Sample], test: Iterable[Sample], notes: list[str]) -> None:
    """Note the identities that are in train and test, and how many of their samples have one key in both."""
    train, test = list(train), list(test)
    shared = {sample.pid for sample in train} & {sample.pid for sample in test}
    if shared:
        keys = {sample.key for sample in train} & {sample.key for sample in test}
        names = f" and {len(keys)} sample names: {first_few(sorted(keys))}" if keys else ""
        notes.append(f"train and test share {len(shared)} identities ({first_few(sorted(shared), 10)}){names}")
