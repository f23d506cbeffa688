"""Right, wrong and unknown answers of one captioner, of the best of two, and with the modalities' complement.

The complement under both readings of an answer such as "no" or "none": it counts as any other, or it yields to a
modality that sees something (`complement(absence=...)`), however uncertain that is or from a floor on. The same
captioners once more with a probability for every value in the place of one confidence, as they are and too sure of
themselves (the square of every probability).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from nextreid.captioning import Answer, Answers, best_of, complement, get_schema
from nextreid.captioning.distribution import priors_of
from nextreid.captioning.merge import Rule
from nextreid.synthetic import PersonsConfig
from nextreid.synthetic.captioner import CAPTIONERS, DESCRIPTIONS, ask_captioners, true_answers, with_probabilities
from nextreid.synthetic.figure import PARTS, PERSON, draw_occluder
from nextreid.synthetic.identity import pool_pids
from nextreid.synthetic.person import make_person
from nextreid.synthetic.person_drawing import draw_person
from nextreid.synthetic.scene import make_camera, make_frame, make_visit, visited_cameras

Asked = Mapping[str, Mapping[str, Answers]]
Merge = Callable[[Asked], Mapping[str, Answers]]
MERGED = DESCRIPTIONS["persons"].merged
FLOORS = (0.0, 0.3, 0.5)  # confidence of what an absence yields to
BINS = 15
CONFIG = PersonsConfig(img_size=(64, 32), num_train=100, frames_per_visit=4)
SOURCES = {"confidence": None, "probabilities": 1.0, "probabilities, too sure": 0.5}  # temperature


def run() -> Iterator[dict[str, Any]]:
    """One row for each way to merge and each group of fields."""
    schema = get_schema("person")
    lasting = tuple(f.name for f in schema.fields if f.rank > 0 and f.name not in MERGED)
    groups = {"carried, held, glasses": MERGED, "other fields of the identity": lasting}
    verbal = list(_ask(CONFIG))
    for source, temperature in SOURCES.items():
        asked = verbal if temperature is None else [(_sure(a, temperature), truth) for a, truth in verbal]
        for group, names in groups.items():
            ways = _verbal_ways(names) if temperature is None else _probable_ways(names, asked)
            for way, merge in ways.items():
                if "yields" in way and names is lasting:
                    continue  # nothing in that group can be absent
                pairs = [
                    (answers[name], truth[name])
                    for annotations, truth in asked
                    for answers in merge(annotations).values()
                    for name in names
                    if truth.get(name) and name in answers
                ]
                yield {"source": source, "merge": way, "fields": group, "samples": len(asked), **_measures(pairs)}


def _measures(pairs: Sequence[tuple[Answer, str]]) -> dict[str, Any]:
    """How right the answers are, and how far their confidence is a probability."""
    known = [(a.value == t, a.confidence) for a, t in pairs if a.is_known(CONFIG.caption_floor)]
    # of what is present, the share that is reported as it is: what a confident "none" of one modality hides
    present = [a.is_known(CONFIG.caption_floor) and a.value == t for a, t in pairs if t not in ("no", "none")]
    right = np.array([a.value == t for a, t in pairs], float)
    sure = np.array([a.weight if a.value is not None else 0.0 for a, _ in pairs])
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(float(np.sum((sure - right)[bins == b]))) for b in range(BINS)]
    rights = np.cumsum(right[np.argsort(-sure, kind="stable")]) / np.arange(1, len(right) + 1)
    figures = {
        "unknown_share": 1 - len(known) / len(pairs),
        "correct_of_known": np.mean([one for one, _ in known]),
        "found_of_present": np.mean(present),
        "mean_confidence": np.mean([confidence for _, confidence in known]),
        "brier": np.mean((sure - right) ** 2),
        "ece": sum(gaps) / len(pairs),
        # the share that can be kept, the most confident first, if 95 % of it is to be right
        "kept_at_95": max((n + 1 for n, share in enumerate(rights) if share >= 0.95), default=0) / len(pairs),
    }
    return {"answers": len(pairs), **{name: round(float(figure), 4) for name, figure in figures.items()}}


def _verbal_ways(names: Sequence[str]) -> dict[str, Merge]:
    ways: dict[str, Merge] = {"one captioner": lambda asked: {m: one[CAPTIONERS[0]] for m, one in asked.items()}}
    rules: tuple[Rule, ...] = ("confidence", "agreement")
    for rule in rules:
        ways[f"best by {rule}"] = partial(_best, rule=rule)
        ways[f"best by {rule} + complement"] = partial(_complemented, rule=rule, fields=names, absence="counts")
        for floor in FLOORS:
            how: dict[str, Any] = {"rule": rule, "fields": names, "absence": "yields", "min_confidence": floor}
            from_floor = f" from {floor:g}" if floor else ""
            ways[f"best by {rule} + complement, absence yields{from_floor}"] = partial(_complemented, **how)
    return ways


def _probable_ways(names: Sequence[str], asked: Sequence[tuple[Asked, Any]]) -> dict[str, Merge]:
    priors = priors_of(one for by_modality, _ in asked for two in by_modality.values() for one in two.values())
    how: dict[str, Any] = {"rule": "probability", "fields": names}
    return {
        "one captioner": lambda asked: {m: one[CAPTIONERS[0]] for m, one in asked.items()},
        "mean of two": partial(_best, rule="probability"),
        "mean of two + mean of the modalities": partial(_complemented, **how),
        "mean of two + product of the modalities": partial(_complemented, **how, priors=priors),
        "mean of two + product, absence yields": partial(_complemented, **how, priors=priors, absence="yields"),
    }


def _best(annotations: Asked, rule: Rule) -> dict[str, Answers]:
    return {m: best_of(annotators, rule=rule).answers for m, annotators in annotations.items()}


def _complemented(annotations: Asked, rule: Rule, **how: Any) -> dict[str, Answers]:
    merged = complement(_best(annotations, rule), "person", rule=rule, **how)
    return {m: r.answers for m, r in merged.items()}


def _sure(annotations: Asked, temperature: float) -> Asked:
    return {
        m: {name: with_probabilities(CONFIG, answers, temperature) for name, answers in annotators.items()}
        for m, annotators in annotations.items()
    }


def _ask(config: PersonsConfig) -> Iterator[tuple[Asked, dict[str, str]]]:
    """What two captioners say of every frame of the training identities, and what is true."""
    for pid in pool_pids(config, "train"):
        identity = make_person(config, pid)
        for camid in visited_cameras(config, pid):
            visit = make_visit(config, pid, camid)
            for number in range(config.frames_per_visit):
                frame = make_frame(config, visit, pid, camid, number)
                labels = draw_person(identity, frame, make_camera(config.kind, config.seed, camid), config.img_size)
                free = PERSON.count(PERSON.part_map(labels))
                if frame.occluder is not None:
                    labels = draw_occluder(PERSON, labels, frame.occluder)
                visible = PERSON.count(PERSON.part_map(labels))
                hidden = {part: max(0, free[part] - visible[part]) for part in PARTS[1:-1]}
                annotations = ask_captioners(config, identity, visit, frame, (pid, camid, number), visible, hidden)
                yield annotations, true_answers(config, identity, visit, frame)
