"""Is a dataset usable? What is wrong with it, and what to do about it."""

from collections.abc import Callable
from typing import get_args

from ..card import missing_counts
from ..sample import ReIDDataset
from ..split import Rule
from .captions import check_captions
from .copies import check_copies
from .findings import LEVELS, Finding, Level, Report
from .images import check_images, check_presence, inspect_images, size_facts
from .labels import check_labels, label_facts
from .spectra import check_spectra

__all__ = ["Finding", "Level", "Report", "check_dataset"]


def check_dataset(
    dataset: ReIDDataset,
    exclude: Rule,
    *,
    protocol: str | None = None,
    images: bool = True,
    captions: bool = True,
    count_tokens: Callable[[str], int] | None = None,
    window: int = 77,
    num_ids: int = 8,
    workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Look for what makes training fail or results wrong, before either begins.

    Args:
        dataset: Any dataset; one without identities is checked for its images and captions only.
        exclude: What a query ignores in the evaluation to come, ``nextreid.retrieval.get_protocol(name).exclude``: the
            entries of its identity from its own ``"camera"`` or ``"scene"``, or ``"none"`` but itself.
        protocol: Name of that protocol, for the report; None takes the dataset's.
        images: Whether to decode every image once.
        captions: Whether to read the captions.
        count_tokens: Number of tokens of a text with the start and end marks, by the tokenizer of the text tower in
            use; None leaves the captions' lengths unchecked.
        window: Most tokens that this text tower reads at once.
        num_ids: Identities of a training batch.
        workers: Threads that decode images; 0 decodes in this one.
        progress: Called with the number of samples decoded and of all samples.

    Returns:
        The findings, errors first, and the counts of each split.

    Raises:
        ValueError: If `exclude` is unknown.
    """
    if exclude not in get_args(Rule):
        raise ValueError(f"exclude must be one of {', '.join(get_args(Rule))}; got {exclude!r}")
    protocol = protocol or dataset.protocol
    splits = label_facts(dataset, exclude)
    findings = [*check_labels(dataset, protocol, exclude, num_ids), *check_presence(dataset)]
    inspected = inspect_images(dataset, workers, progress) if images else {}
    for split, facts in splits.items():
        facts["sizes"] = size_facts(dataset, split, inspected)
    if images:
        for check in (check_images, check_copies, check_spectra):
            findings += check(dataset, inspected)
    if captions:
        findings += check_captions(dataset, count_tokens, window)
    if lacking := missing_counts(dataset):
        message = "the copy is smaller than the published dataset, so metrics do not compare with published ones"
        hint = "get what is missing; the counts are those of its card (nextreid data card)"
        findings.append(Finding("warning", "incomplete-copy", message, hint, len(lacking), tuple(lacking)))
    findings += [Finding("note", "reader", note, "", 1) for note in dataset.notes]
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Report(dataset.name, dataset.modalities, protocol, exclude, splits, tuple(findings))
