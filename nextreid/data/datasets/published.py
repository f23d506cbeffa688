"""What the readers of published trees share: folders found, images paired, captions joined, query lists compared."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ..sample import ReIDDataset, Sample
from ..split import with_match
from .captions import add_captions, caption_home
from .folder_layout import (
    Name,
    choose_modalities,
    find_home,
    identity_folders,
    modality_folders,
    note_shared_identities,
    pair_by_name,
)

VIS_NI_TH: Mapping[str, str] = {"rgb": "vis", "nir": "ni", "tir": "th"}


class PublishedTree:
    """One published folder tree while it is read; a subclass describes each dataset.

    Args:
        root: The dataset's folder or the one that holds it.
        captions: Folder with ``{train,test}_{RGB,NI,TI}.json``, or one that holds it, or None.
        modalities: Which modalities to read, in which order.
        complete: Leave out samples that lack a modality.

    Attributes:
        name: Name of the dataset and of its protocol.
        object_type: What is re-identified.
        homes: Published names of the dataset's folder.
        captions: Names that the folder of its captions may have.
        splits: Folders that must be there.
        folders: Folder name of each modality.
        by_identity: Whether there are such folders for each identity, rather than for each split.
        layout: The expected tree, for messages.
        notes: What was noticed so far.

    Raises:
        FileNotFoundError: If a folder or every caption file is missing.
        ValueError: If a modality is unknown.
    """

    name: ClassVar[str]
    object_type: ClassVar[str] = "vehicle"
    homes: ClassVar[Sequence[str]]
    captions: ClassVar[Sequence[str]]
    splits: ClassVar[Sequence[str]]
    folders: ClassVar[Mapping[str, str]] = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
    by_identity: ClassVar[bool] = False
    layout: ClassVar[str]

    def __init__(
        self, root: str | Path, captions: str | Path | None, modalities: Sequence[str], complete: bool = False
    ) -> None:
        self.modalities = choose_modalities(modalities, self.folders)
        self.home = find_home(root, self.homes, self.splits, self.layout)
        self.texts = caption_home(captions, self.captions, self.modalities)
        self.complete = complete
        self.notes: list[str] = []

    def parse(self, path: Path) -> Name | None:
        """Return what the path of an image says, None where it is not of the published form."""
        raise NotImplementedError

    def samples(self, split: str, folder: str) -> list[Sample]:
        """Return the samples of a folder without captions, sorted by key; `split` is its name in notes."""
        names = {modality: self.folders[modality] for modality in self.modalities}
        find = identity_folders if self.by_identity else modality_folders
        folders = find(self.home / folder, names, self.layout)
        return pair_by_name(split, folders, self.parse, self.notes, complete=self.complete)

    def read(self, split: str, folder: str) -> tuple[Sample, ...]:
        """Return the samples of a folder with the captions of a split."""
        return self._captioned(self.samples(split, folder), split)

    def query_and_gallery(
        self, folder: str, split: str = "test"
    ) -> tuple[tuple[Sample, ...] | None, tuple[Sample, ...]]:
        """Return the samples of the folder ``query``, None where it is missing, and of a gallery folder.

        A query that is a gallery sample too, by its key, becomes that very object.
        """
        query = self.samples("query", "query") if (self.home / "query").is_dir() else None
        both = self._captioned([*(query or ()), *self.samples(split, folder)], "test")
        count = len(query or ())
        gallery = {sample.key: sample for sample in both[count:]}
        queries = None if query is None else tuple(gallery.get(sample.key, sample) for sample in both[:count])
        return queries, tuple(gallery.values())

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
        """Note where the query list by a rule and the one of a folder differ.

        Args:
            rule: Queries by the rule.
            folder: Queries in the folder.
            names: What to call the rule, and the folder's name.
            used: Which of the two is used, "rule" or "folder".
        """
        by_rule, in_folder = ({sample.key for sample in samples} for samples in (rule, folder))
        if by_rule != in_folder:
            marks = [" (used)" if used == which else "" for which in ("rule", "folder")]
            self.notes.append(
                f"query: the {names[0]} rule gives {len(by_rule)} samples{marks[0]}, folder {names[1]} has "
                f"{len(in_folder)}{marks[1]}; {len(by_rule - in_folder)} only by the rule, "
                f"{len(in_folder - by_rule)} only in the folder"
            )

    def dataset(self, train: tuple[Sample, ...], query: tuple[Sample, ...], gallery: tuple[Sample, ...]) -> ReIDDataset:
        """Return the dataset; identities that train and test share are noted."""
        note_shared_identities(train, (*query, *gallery), self.notes)
        notes = tuple(self.notes)
        return ReIDDataset(self.name, self.modalities, self.object_type, self.name, train, query, gallery, notes)

    def _captioned(self, samples: Sequence[Sample], split: str) -> tuple[Sample, ...]:
        return tuple(add_captions(samples, self.texts, split, self.modalities, self.notes))
