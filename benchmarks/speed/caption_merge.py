"""Right, wrong and unknown answers of one captioner, of the best of two, and with the modalities' complement.

The complement under both readings of an answer such as "no" or "none": it counts as any other, or it yields to a
modality that sees something (`complement(absence=...)`), however uncertain that is or from a floor on.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, get_args

import numpy as np

from nextreid.captioning import Answers, best_of, complement, get_schema
from nextreid.captioning.merge import Rule
from nextreid.synthetic import PersonsConfig
from nextreid.synthetic.captioner import CAPTIONERS, MERGED, ask_captioners, true_answers
from nextreid.synthetic.drawing import draw_occluder, draw_person
from nextreid.synthetic.figure import PARTS, part_map
from nextreid.synthetic.identity import make_identity, pool_pids
from nextreid.synthetic.scene import make_camera, make_frame, make_visit, visited_cameras

Asked = Mapping[str, Mapping[str, Answers]]
FLOORS = (0.0, 0.3, 0.5)  # confidence of what an absence yields to
CONFIG = PersonsConfig(img_size=(64, 32), num_train=100, frames_per_visit=4)


def run() -> Iterator[dict[str, Any]]:
    """One row for each way to merge and each group of fields."""
    schema = get_schema("person")
    asked = list(_ask(CONFIG))
    ways: dict[str, Any] = {
        "one captioner": lambda annotations: {m: annotators[CAPTIONERS[0]] for m, annotators in annotations.items()},
    }
    for rule in get_args(Rule):
        ways[f"best by {rule}"] = partial(_best, rule=rule)
        ways[f"best by {rule} + complement"] = partial(_complemented, rule=rule, absence="counts")
        for floor in FLOORS:
            from_floor = f" from {floor:g}" if floor else ""
            name = f"best by {rule} + complement, absence yields{from_floor}"
            ways[name] = partial(_complemented, rule=rule, absence="yields", min_confidence=floor)
    lasting = tuple(f.name for f in schema.fields if f.rank > 0 and f.name not in MERGED)
    groups = {"carried, held, glasses": MERGED, "other fields of the identity": lasting}
    for way, merge in ways.items():
        merged = [(merge(annotations), truth) for annotations, truth in asked]
        for group, names in groups.items():
            if "complement" in way and names is lasting:
                continue  # the modalities complement each other in the other group alone
            pairs = [
                (answers[name], truth[name])
                for by_modality, truth in merged
                for answers in by_modality.values()
                for name in names
                if name in answers
            ]
            known = [(a.value == t, a.confidence) for a, t in pairs if a.is_known(CONFIG.caption_floor)]
            # of what is present, the share that is reported as it is: what a confident "none" of one modality hides
            present = [a.is_known(CONFIG.caption_floor) and a.value == t for a, t in pairs if t not in ("no", "none")]
            yield {
                "merge": way,
                "fields": group,
                "samples": len(asked),
                "answers": len(pairs),
                "unknown_share": round(1 - len(known) / len(pairs), 4),
                "correct_of_known": round(float(np.mean([right for right, _ in known])), 4),
                "found_of_present": round(float(np.mean(present)), 4),
                "mean_confidence": round(float(np.mean([confidence for _, confidence in known])), 4),
            }


def _best(annotations: Asked, rule: Rule) -> dict[str, Answers]:
    return {m: best_of(annotators, rule=rule).answers for m, annotators in annotations.items()}


def _complemented(annotations: Asked, rule: Rule, **how: Any) -> dict[str, Answers]:
    merged = complement(_best(annotations, rule), "person", fields=MERGED, rule=rule, **how)
    return {m: r.answers for m, r in merged.items()}


def _ask(config: PersonsConfig) -> Iterator[tuple[Asked, dict[str, str]]]:
    """What two captioners say of every frame of the training identities, and what is true."""
    for pid in pool_pids(config, "train"):
        identity = make_identity(config, pid)
        for camid in visited_cameras(config, pid):
            visit = make_visit(config, pid, camid)
            for number in range(config.frames_per_visit):
                frame = make_frame(config, visit, pid, camid, number)
                labels = draw_person(identity, frame, make_camera(config.seed, camid).scale, config.img_size)
                free = _count(labels)
                if frame.occluder is not None:
                    labels = draw_occluder(labels, frame.occluder)
                visible = _count(labels)
                hidden = {part: max(0, free[part] - visible[part]) for part in PARTS[1:-1]}
                annotations = ask_captioners(config, identity, visit, frame, (pid, camid, number), visible, hidden)
                yield annotations, true_answers(identity, visit, frame)


def _count(labels: np.ndarray) -> dict[str, int]:
    return dict(zip(PARTS, np.bincount(part_map(labels).ravel(), minlength=len(PARTS)).tolist(), strict=True))
