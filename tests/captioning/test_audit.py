import math
from collections import Counter
from itertools import combinations, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.captioning import Audit, AuditTable, audit_captions
from nextreid.captioning.audit import DEFECTS, Label, find_defects, label_of_name, open_caption_files
from nextreid.captioning.statistics import (
    chance,
    cohen_kappa,
    identity_consistency,
    text_retrieval,
    word_features,
)
from nextreid.retrieval import Identities

VALUES = st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=1, max_size=12)


@given(VALUES, st.data())
def test_kappa_against_its_definition(first, data) -> None:
    second = data.draw(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=len(first), max_size=len(first)))
    found = cohen_kappa(first, second)
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a and b]
    assert found.pairs == len(pairs)
    if not pairs:
        assert math.isnan(found.share) and math.isnan(found.kappa)
        return
    table = np.zeros((3, 3))
    for a, b in pairs:
        table["abc".index(a), "abc".index(b)] += 1 / len(pairs)
    observed, expected = np.trace(table), float(table.sum(0) @ table.sum(1))
    assert found.share == pytest.approx(observed)
    assert found.kappa == pytest.approx(1.0 if expected > 1 - 1e-12 else (observed - expected) / (1 - expected))


@given(VALUES, st.data())
def test_consistency_against_all_pairs(values, data) -> None:
    pids = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    found = identity_consistency(values, pids)
    agree: dict[bool, list[bool]] = {True: [], False: []}
    for (v, p), (w, q) in combinations(zip(values, pids, strict=True), 2):
        if v and w:
            agree[p == q].append(v == w)
    for share, kind in ((found.same, True), (found.other, False)):
        assert math.isnan(share) if not agree[kind] else share == pytest.approx(np.mean(agree[kind]))


def row_of(table: AuditTable, *keys: str) -> dict[str, str | int | float]:
    """The row whose first cells are `keys`, by column."""
    (cells,) = (cells for cells in table.rows if tuple(cells[: len(keys)]) == keys)
    return dict(zip(table.columns, cells, strict=True))


def test_chance_against_all_orders() -> None:
    for matches, others in ((1, 0), (1, 4), (2, 3), (4, 1), (3, 0)):
        precisions, firsts = [], []
        for order in permutations([1] * matches + [0] * others):
            hits = np.array(order)
            precisions.append((hits * np.cumsum(hits) / np.arange(1, len(hits) + 1)).sum() / matches)
            firsts.append(hits[0])
        found = chance(np.array([matches]), np.array([others]))
        assert found == pytest.approx((np.mean(precisions), np.mean(firsts)))


def test_word_features_against_a_plain_loop() -> None:
    texts = ["A red red car.", "A red bus, a car", "Blue bus!", ""]
    found = word_features(texts)
    words = [["red", "red", "car"], ["red", "bus", "car"], ["blue", "bus"], []]
    terms = [Counter(w + [f"{a} {b}" for a, b in pairwise(w)]) for w in words]
    known = [t for t in dict.fromkeys(t for counts in terms for t in counts) if sum(t in c for c in terms) >= 2]
    expected = np.array(
        [
            [
                (1 + math.log(c[t])) * (1 + math.log(5 / (1 + sum(t in d for d in terms)))) if t in c else 0
                for t in known
            ]
            for c in terms
        ]
    )
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    assert sorted(known) == ["bus", "car", "red"]
    assert np.allclose(found, expected, atol=1e-6)


def test_text_retrieval_asks_only_what_has_a_match() -> None:
    ids = Identities(np.array([1, 1, 2, 2, 3]), np.array([0, 1, 0, 0, 0]), np.array([0, 1, 0, 0, 0]))
    features = np.eye(5, dtype=np.float32)
    features[1] = features[0]
    found = text_retrieval(features, ids, "camera")
    assert found.queries == 2 and found.mAP == found.rank1 == 1.0 and found.chance_rank1 == pytest.approx(1 / 4)
    assert text_retrieval(features, ids, "none").queries == 4
    alone = Identities(np.arange(3), np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="no image has a match"):
        text_retrieval(features[:3], alone, "camera")


def test_unknown_scenes_are_unknown_and_the_chosen_protocol_is_named() -> None:
    scenes, names = ["s999", "s999", "s003", "s004"], ["v1", "v2", "v1", "v2"]
    items = [f"{pid:04d}_{v}_n1_{s}_001.jpg" for pid in (1, 2) for v, s in zip(names, scenes, strict=True)]
    assert [label_of_name(item).sceneid for item in items[:4]] == [-1, -1, 3, 4]

    def note(captions: dict[str, str], **options) -> tuple[str, int]:
        table = audit_captions({("test", "rgb"): captions}, count_tokens=len, **options).tables["retrieval"]
        return table.note, row_of(table, "rgb")["queries"]

    captions = {item: f"A red car {number}." for number, item in enumerate(items)}
    text, queries = note(captions)
    assert queries == 8 and "'camera' (chosen because the scene of 4 of 8 images is known, and the camera of 8)" in text
    assert "'scene' (as asked)" in note(captions, protocol="scene")[0]
    known = {item: caption for item, caption in captions.items() if "s999" not in item}
    assert "'scene' (chosen because every image has a scene)" in note(known)[0]
    assert "'none' (chosen because no scene is known and no camera)" in note({"1_a": "A.", "1_b": "A.", "2_a": "B."})[0]


def test_no_text_finds_itself() -> None:
    ids = Identities(np.array([1, 1, 2, 2]), np.zeros(4, dtype=int))
    features = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]  # each text is that of the other identity
    found = text_retrieval(features, ids, "none")
    assert found.queries == 4 and found.rank1 == 0.0 and found.mAP == pytest.approx(5 / 12)


@pytest.mark.parametrize(
    ("caption", "marks"),
    [
        ("", {"empty"}),
        ("An adult male. He is carrying a backpack.", set()),
        ("He is carrying none.", {"carrying none"}),
        ("He is carrying a none.", {"carrying none"}),
        ("A adult male.", {"a before a vowel"}),
        ("A used car, a uniform.", set()),
        ("A Audi.", {"a before a vowel"}),
        ("Paired with unknowable due to blur unknowable due to blur.", {"unknown", "words doubled"}),
        ("Paired with none visible footwear.", {"none visible"}),
        ("A dark (possibly black) coat.", {"(possibly"}),
        ("A [age] person.", {"unfilled slot"}),
        ("Short | medium hair.", {"choices left in"}),
        ("Bags, e.g. a backpack.", {"e.g. left in"}),
        ("She is carrying handbag.", {"carrying handbag"}),
        ("A white dress with a white dress.", {"dress with dress"}),
        ("Seen during nighttime in bright lighting.", {"bright night"}),
        ("In bright nighttime light.", {"bright night"}),
        ("N/A taillights.", {"unknown", "N/A"}),
        ("A Citroën.", {"not ASCII"}),
    ],
)
def test_defects(caption: str, marks: set[str]) -> None:
    assert set(find_defects(caption, "rgb")) == marks


def test_every_mark_is_tested_and_colours_count_where_there_are_none() -> None:
    case = next(m for m in test_defects.pytestmark if m.name == "parametrize")
    assert set().union(*(marks for _, marks in case.args[1])) == set(DEFECTS)
    assert [find_defects("A red car.", m) for m in ("rgb", "nir", "tir")] == [(), ("color",), ("color",)]


@pytest.mark.parametrize(
    ("item", "label"),
    [
        ("000258_cam1_0_00.jpg", Label(258, 1, -1)),
        ("0002_s002_v0_000.jpg", Label(2, 0, 2)),
        ("0865_v1_n0_s999_002.jpg", Label(865, 1, -1)),
        ("folder/0007_c0003_01.png", Label(7, 3, -1)),
        ("12_.jpg", Label(12)),
        ("photo.jpg", None),
        ("12.jpg", None),
    ],
)
def test_labels_of_names(item: str, label: Label | None) -> None:
    assert label_of_name(item) == label


CAPTIONS = {
    ("test", "rgb"): {
        "1_cam1.jpg": "An adult male seen from the back.",
        "1_cam2.jpg": "An adult male seen from the side.",
        "2_cam1.jpg": "A adult female seen from the back. She is carrying none.",
        "2_cam2.jpg": "An adult male seen from the train.",
    },
    ("test", "tir"): {
        "1_cam1.jpg": "An adult male seen from the back.",
        "1_cam2.jpg": "An adult female seen from the side.",
        "2_cam1.jpg": "An adult female seen from the back.",
    },
}


def test_a_small_audit() -> None:
    audit = audit_captions(CAPTIONS, count_tokens=lambda text: 2 + 20 * len(text.split()))
    assert audit.schema == "person" and not audit.notes
    rgb = row_of(audit.tables["files"], "test rgb")
    assert (rgb["captions"], rgb["identities"], rgb["cameras"], rgb["missing elsewhere"]) == (4, 2, 2, 1)
    assert rgb["tokens min/5%/mid/95%/max"].startswith("142/") and rgb["over 77"] == 1.0
    assert row_of(audit.tables["defects"], "a before a vowel") == {
        "defect": "a before a vowel",
        "test rgb": 1,
        "test tir": 0,
    }
    assert row_of(audit.tables["cut"], "who") == {"sentence": "who", "test rgb": 1.0, "test tir": 1.0}
    view = row_of(audit.tables["vocabulary"], "rgb", "view")
    assert view["coverage"] == 1.0 and view["out of vocabulary"] == 0.25 and view["such as"] == "train (1)"
    gender = row_of(audit.tables["modalities"], "gender", "rgb - tir")
    assert gender["images"] == 3 and gender["agreement"] == pytest.approx(2 / 3)
    assert row_of(audit.tables["consistency"], "gender")["rgb same"] == pytest.approx(1 / 2)
    retrieval = row_of(audit.tables["retrieval"], "all modalities")
    assert retrieval["queries"] == 2, (
        "the item that thermal does not have is left out, and with it its identity's queries"
    )


def test_a_caption_of_just_the_window_is_neither_over_nor_cut() -> None:
    texts = {"1_a.jpg": "An adult. A child.", "2_a.jpg": "An adult. A teenager boy."}
    lengths = {"An adult.": 40, "A child.": 39, "A teenager boy.": 40}  # 2 + 38 + 37 = 77, 2 + 38 + 38 = 78
    audit = audit_captions({("test", "rgb"): texts}, schema="person", count_tokens=lambda text: lengths[text])
    assert row_of(audit.tables["files"], "test rgb")["over 77"] == 0.5
    assert row_of(audit.tables["cut"], "all")["test rgb"] == 0.25


def test_captions_without_labels_or_grammar_are_audited_as_far_as_they_go() -> None:
    audit = audit_captions({("", "rgb"): {"x.jpg": "A cat sat.", "y.jpg": "A dog ran."}})
    assert audit.schema is None and list(audit.tables) == ["files"]
    assert any("No grammar" in note for note in audit.notes)
    assert any("no image has an identity" in note for note in audit.notes)


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no caption to audit"):
        audit_captions({("test", "rgb"): {}})
    with pytest.raises(FileNotFoundError, match=r"no \{split\}_\{modality\}\.json"):
        audit_captions(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        audit_captions(tmp_path / "nowhere.json")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_RGB.json").write_text('[{"item": "1_c1.jpg", "description": "A man."}]')
    with pytest.raises(ValueError, match="two files hold the captions of 'test rgb'"):
        audit_captions([tmp_path / "a", tmp_path / "b"])
    assert open_caption_files([tmp_path / "a"]) == {("test", "rgb"): {"1_c1.jpg": "A man."}}


@pytest.fixture(scope="module", params=["RGBNT201", "MSVR310"])
def published(request, published_captions: Path) -> tuple[str, Audit]:
    return request.param, audit_captions(published_captions / "NEXT" / request.param)


# captions, identities, distinct captions, distinct sentences, tokens min/mid/max, over 77 %, unknown %
FILES = {
    ("RGBNT201", "train rgb"): (3951, 171, 3472, 2024, (19, 51, 89), 0.7, 8.2),
    ("RGBNT201", "train nir"): (3951, 171, 2577, 600, (19, 49, 72), 0.0, 1.3),
    ("RGBNT201", "train tir"): (3951, 171, 2366, 474, (28, 44, 58), 0.0, 0.6),
    ("RGBNT201", "test rgb"): (836, 30, 786, 579, (28, 50, 91), 0.8, 9.0),
    ("RGBNT201", "test nir"): (836, 30, 627, 275, (33, 49, 62), 0.0, 1.9),
    ("RGBNT201", "test tir"): (836, 30, 575, 194, (28, 44, 59), 0.0, 0.6),
    ("MSVR310", "train rgb"): (1032, 155, 1027, 923, (67, 93, 97), 98.3, 0.1),
    ("MSVR310", "train nir"): (1032, 155, 1030, 784, (71, 92, 95), 99.0, 0.1),
    ("MSVR310", "train tir"): (1032, 155, 1012, 523, (55, 88, 92), 91.2, 0.4),
    ("MSVR310", "test rgb"): (1055, 155, 1054, 1011, (52, 93, 102), 97.9, 0.0),
    ("MSVR310", "test nir"): (1055, 155, 1050, 866, (71, 92, 97), 98.5, 0.1),
    ("MSVR310", "test tir"): (1055, 155, 1048, 573, (52, 88, 91), 92.4, 0.7),
}
DEFECTIVE = {  # train and test together, in rgb, nir, tir
    "RGBNT201": {
        "unknown": (398, 66, 28),
        "carrying none": (359, 353, 377),
        "none visible": (124, 61, 29),
        "(possibly": (246, 2, 2),
        "unfilled slot": (2, 0, 0),
        "choices left in": (17, 0, 0),
        "e.g. left in": (4, 2, 1),
        "words doubled": (240, 54, 30),
        "a before a vowel": (192, 347, 416),
        "carrying handbag": (63, 15, 32),
        "dress with dress": (146, 79, 56),
        "bright night": (7, 56, 0),
        "N/A": (1, 0, 0),
        "color": (0, 1, 0),
    },
    "MSVR310": {
        "unknown": (1, 2, 11),
        "none visible": (0, 0, 2),
        "(possibly": (1, 0, 0),
        "words doubled": (0, 0, 2),
        "a before a vowel": (27, 32, 32),
        "bright night": (10, 110, 0),
        "N/A": (0, 1, 9),
        "not ASCII": (33, 25, 25),
    },
}
AGREEMENT = {  # agreement and kappa of rgb - nir, rgb - tir, nir - tir
    "RGBNT201": {
        "gender": ((0.76, 0.49), (0.73, 0.46), (0.74, 0.46)),
        "view": ((0.69, 0.51), (0.61, 0.41), (0.62, 0.43)),
        "lower_clothing": ((0.70, 0.45), (0.61, 0.35), (0.63, 0.36)),
        "hair_length": ((0.68, 0.38), (0.65, 0.36), (0.63, 0.35)),
        "footwear_style": ((0.77, 0.16), (0.79, 0.13), (0.87, 0.19)),
        "glasses": ((0.99, 0.98),) * 3,
        "handbag": ((1.0, 1.0),) * 3,
        "backpack": ((1.0, 1.0),) * 3,
    },
    "MSVR310": {name: ((1.0, 1.0),) * 3 for name in ("license_plate", "spoiler", "roof_rack")},
}
RETRIEVAL = {  # mAP, rank-1 of rgb, nir, tir, all three; chance mAP. Equal distances leave a little room
    "RGBNT201": (836, (7.0, 8.9), (3.8, 2.8), (6.2, 5.4), (7.2, 8.5), 2.4),
    "MSVR310": (591, (28.4, 43.8), (12.7, 22.3), (9.4, 18.6), (25.5, 41.3), 1.6),
}


def test_published_files(published: tuple[str, Audit]) -> None:
    name, audit = published
    for (dataset, file), (captions, pids, texts, sentences, tokens, over, unknown) in FILES.items():
        if dataset == name:
            row = row_of(audit.tables["files"], file)
            assert (row["captions"], row["identities"], row["missing elsewhere"]) == (captions, pids, 0)
            assert (row["distinct captions"], row["distinct sentences"]) == (texts, sentences)
            assert tuple(int(row["tokens min/5%/mid/95%/max"].split("/")[i]) for i in (0, 2, 4)) == tokens
            assert (round(100 * row["over 77"], 1), round(100 * row["unknown"], 1)) == (over, unknown)
            assert row["parsed in full"] >= 0.995


def test_published_defects(published: tuple[str, Audit]) -> None:
    name, audit = published
    found = {
        row[0]: tuple(a + b for a, b in zip(row[1:4], row[4:7], strict=True)) for row in audit.tables["defects"].rows
    }
    assert found == DEFECTIVE[name]


def test_published_cuts(published: tuple[str, Audit]) -> None:
    name, audit = published
    cut = audit.tables["cut"]
    if name == "RGBNT201":
        assert row_of(cut, "all")["train rgb"] < 0.003
        return
    means = {n: np.mean([row_of(cut, n)[f"{s} rgb"] for s in ("train", "test")]) for n in ("rack", "spoiler", "plate")}
    assert means == pytest.approx({"rack": 0.91, "spoiler": 0.81, "plate": 0.15}, abs=0.015)
    assert row_of(cut, "exhaust")["test rgb"] > 0.99 and 1 - row_of(cut, "all")["test rgb"] == pytest.approx(
        0.687, abs=0.005
    )


def test_published_agreement(published: tuple[str, Audit]) -> None:
    name, audit = published
    for field, expected in AGREEMENT[name].items():
        for pair, (share, kappa) in zip(("rgb - nir", "rgb - tir", "nir - tir"), expected, strict=True):
            row = row_of(audit.tables["modalities"], field, pair)
            assert (row["agreement"], row["kappa"]) == pytest.approx((share, kappa), abs=0.015), (field, pair)


def test_published_identity_in_text(published: tuple[str, Audit]) -> None:
    name, audit = published
    queries, *expected, by_chance = RETRIEVAL[name]
    for captions, (mean, first) in zip(("rgb", "nir", "tir", "all modalities"), expected, strict=True):
        row = row_of(audit.tables["retrieval"], captions)
        assert row["queries"] == queries
        assert 100 * row["mAP"] == pytest.approx(mean, abs=0.15)
        assert 100 * row["rank-1"] == pytest.approx(first, abs=0.5)
        assert round(100 * row["chance mAP"], 1) == by_chance
    moment, lasting = (
        row_of(audit.tables["retrieval"], f"fields of the {kind}")["mAP"] for kind in ("moment", "identity")
    )
    assert moment < 0.025 < 0.08 < lasting
