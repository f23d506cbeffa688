"""Is a data set usable? What is wrong with it, and what to do about it."""

from collections.abc import Callable

from ...retrieval import Protocol, get_protocol
from ..sample import ReIDDataset
from .captions import check_captions
from .findings import LEVELS, Finding, Level, Report
from .labels import check_labels, label_facts
from .pictures import check_pictures, check_presence, look_at_pictures, size_facts

__all__ = ["Finding", "Level", "Report", "check_dataset"]


def check_dataset(
    dataset: ReIDDataset,
    *,
    protocol: str | Protocol | None = None,
    pictures: bool = True,
    captions: bool = True,
    count_tokens: Callable[[str], int] | None = None,
    window: int = 77,
    num_ids: int = 8,
    workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Look for what makes training fail or numbers wrong, before either begins.

    Args:
        dataset: Any data set; one without identities is checked for its pictures and captions only.
        protocol: Protocol of the evaluation to come; None takes the data set's own.
        pictures: Whether to decode every picture once.
        captions: Whether to read the captions.
        count_tokens: Number of tokens of a text with the start and end marks, by the tokenizer of the text tower in
            use; None leaves the captions' lengths unchecked.
        window: Most tokens that this text tower reads at once.
        num_ids: Identities of a training batch.
        workers: Threads that decode pictures; 0 decodes in this one.
        progress: Called with the number of samples decoded and of all samples.

    Returns:
        The findings, errors first, and the counts of each split.

    Raises:
        ValueError: If the protocol is unknown.
    """
    rule = get_protocol(dataset.protocol if protocol is None else protocol)
    splits = label_facts(dataset, rule)
    findings = [*check_labels(dataset, rule, num_ids), *check_presence(dataset)]
    sizes: dict[str, dict[str, dict[str, int]]] = {}
    if pictures:
        looks = look_at_pictures(dataset, workers, progress)
        sizes = size_facts(dataset, looks)
        findings += check_pictures(dataset, looks)
    for split, facts in splits.items():
        facts["sizes"] = sizes.get(split, {})
    if captions:
        findings += check_captions(dataset, count_tokens, window)
    findings += [Finding("note", "reader", note, "", 1) for note in dataset.notes]
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Report(dataset.name, dataset.modalities, rule.name, rule.exclude, splits, tuple(findings))
