"""Query lists: a published folder, a rule, and how the two differ."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..captions import add_captions
from ..sample import Sample
from ..split import with_match


def query_and_gallery(
    query: Sequence[Sample], gallery: Sequence[Sample], texts: Path | None, modalities: Sequence[str], notes: list[str]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return both with the captions of the test split, which cover both.

    A query that is a gallery sample too, by its key, becomes that very object.
    """
    both = add_captions([*query, *gallery], texts, "test", modalities, notes)
    in_gallery = {sample.key: sample for sample in both[len(query) :]}
    return tuple(in_gallery.get(s.key, s) for s in both[: len(query)]), tuple(in_gallery.values())


def rebuild_query(gallery: Sequence[Sample], notes: list[str]) -> tuple[Sample, ...]:
    """Return the gallery samples that have a match from another camera, for sets whose query list is not at hand."""
    query = with_match(gallery, gallery, "camera")
    notes.append(
        f"query: no folder query, and its list is not published: all {len(query)} of {len(gallery)} gallery samples "
        "that have a match from another camera are queries; numbers do not compare with those on the published list"
    )
    return query


def note_difference(
    rule: Iterable[Sample], folder: Iterable[Sample], names: tuple[str, str], used: str, notes: list[str]
) -> None:
    """Note where the query list by a rule and the one of a folder are not the same.

    Args:
        rule: Queries by the rule.
        folder: Queries in the folder.
        names: What to call the rule, and the folder's name.
        used: Which of the two is used, "rule" or "folder".
        notes: Extended by the difference, if there is one.
    """
    by_rule, in_folder = ({sample.key for sample in samples} for samples in (rule, folder))
    if by_rule != in_folder:
        marks = [" (used)" if used == which else "" for which in ("rule", "folder")]
        notes.append(
            f"query: the {names[0]} rule gives {len(by_rule)} samples{marks[0]}, folder {names[1]} has "
            f"{len(in_folder)}{marks[1]}; {len(by_rule - in_folder)} only by the rule, "
            f"{len(in_folder - by_rule)} only in the folder"
        )
