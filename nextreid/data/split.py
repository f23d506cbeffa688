"""Which queries have a match, and splits in which all of them do."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from .._names import first_few
from .rng import seeded_rng
from .sample import ReIDDataset, Sample, as_modalities, repeated_keys

Rule = Literal["camera", "scene", "none"]

# by what a query knows the gallery entries of its identity that it ignores
_ATTRIBUTE = {"camera": "camid", "scene": "sceneid", "none": "key"}


def count_matches(query: Iterable[Sample], gallery: Sequence[Sample], rule: Rule) -> list[int]:
    """Count the valid matches of each query: the gallery entries of its identity that the rule does not exclude.

    A query with at least one is valid; `nextreid.retrieval.rank` counts the same queries. A query ignores the entries
    of its identity from its own ``"camera"`` or its own ``"scene"`` (label -1 counts as one of them), or ``"none"``;
    and always itself, the entry of its identity with its key. An unknown identity (-1) matches nothing.
    """
    attribute = _ATTRIBUTE[rule]
    identity = Counter(sample.pid for sample in gallery)
    ignored = Counter((sample.pid, getattr(sample, attribute)) for sample in gallery)
    itself = {(sample.pid, sample.key): getattr(sample, attribute) for sample in gallery}
    counts = []
    for sample in query:
        if sample.pid < 0:
            counts.append(0)
            continue
        label = getattr(sample, attribute)
        # the gallery may label the query itself differently, so that the rule alone would not ignore it
        relabelled = itself.get((sample.pid, sample.key), label) != label
        counts.append(identity[sample.pid] - ignored[sample.pid, label] - relabelled)
    return counts


def with_match(query: Sequence[Sample], gallery: Sequence[Sample], rule: Rule) -> tuple[Sample, ...]:
    """Return the queries that have a valid match."""
    return tuple(sample for sample, count in zip(query, count_matches(query, gallery, rule), strict=True) if count)


def split_identities(
    samples: Iterable[Sample],
    *,
    modalities: Sequence[str],
    train: float = 0.5,
    rule: Rule = "camera",
    seed: int = 0,
    name: str = "split",
    object_type: str = "object",
) -> ReIDDataset:
    """Split samples by identity into train and test, with a query list in which every query has a valid match.

    No identity is in both. All test samples are gallery; queries are those with a valid match under `rule`, and at
    least one identity with such samples is kept for the test. Identities that can be queries and identities that can
    only be distractors are drawn separately, so that train and test get their share of each. The draw depends on the
    identities and the seed, not on the order of the samples.

    Args:
        samples: Labelled samples with unique keys; those of pid -1 (unknown) are left out.
        modalities: Names of the images, in their order.
        train: Share of the identities to train on, in [0, 1).
        rule: What a query ignores in the gallery: entries of its identity from its own ``"camera"``, from its own
            ``"scene"``, or ``"none"`` but itself. It becomes the dataset's protocol.
        seed: Seed of the draw.
        name: Name of the dataset.
        object_type: What is re-identified.

    Returns:
        The dataset; its notes name the test identities that can only be distractors.

    Raises:
        ValueError: If a setting is out of range, keys repeat, or no identity has a valid match.
    """
    if not 0 <= train < 1:
        raise ValueError(f"train is the share of identities to train on, in [0, 1), got {train}")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}; got {rule!r}")
    ordered = sorted(samples, key=lambda sample: sample.key)
    if repeated := repeated_keys(sample.key for sample in ordered):
        raise ValueError(
            f"{len(repeated)} keys occur more than once, such as {first_few(map(repr, repeated))}: keys must be unique"
        )
    known = [sample for sample in ordered if sample.pid >= 0]
    identities = {sample.pid for sample in known}
    able = {sample.pid for sample in with_match(known, known, rule)}
    if not able:
        if rule == "none":
            raise ValueError(f"no query could ever match: no sample of {len(known)} has a second one of its identity")
        raise ValueError(
            f"no identity of {len(known)} labelled samples is seen by two {rule}s, so no query could ever match: label "
            f"the {rule}s ({_ATTRIBUTE[rule]}; -1 everywhere counts as one {rule}), or split with rule='none'"
        )
    held = _draw("able", able, 1 - train, 1, seed) | _draw("distractors", identities - able, 1 - train, 0, seed)
    gallery = tuple(sample for sample in known if sample.pid in held)
    notes = []
    if len(known) < len(ordered):
        notes.append(f"{len(ordered) - len(known)} samples of unknown identity (pid -1) left out")
    if distractors := sorted(held - able):
        why = "are seen once" if rule == "none" else f"have one {rule}"
        what = f"{len(distractors)} of {len(held)} test identities {why}: distractors only"
        notes.append(f"{what}: {first_few(distractors, 10)}")
    train_samples = tuple(sample for sample in known if sample.pid not in held)
    query = with_match(gallery, gallery, rule)
    return ReIDDataset(name, as_modalities(modalities), object_type, rule, train_samples, query, gallery, tuple(notes))


def _draw(what: str, identities: set[int], share: float, least: int, seed: int) -> set[int]:
    """Draw a share of the identities, rounded half up, and at least so many."""
    count = max(least, int(share * len(identities) + 0.5))
    order = seeded_rng("split", seed, what).permutation(sorted(identities))
    return set(order[:count].tolist())
