"""Cards: every named dataset has one, their counts are those of the published names, and leaks are errors."""

import json
import re
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from nextreid.data import ReIDDataset, Sample, list_datasets, load_dataset
from nextreid.data.card import DataCard, Overlap, data_card, list_cards, list_overlaps, missing_counts, reject_leak
from nextreid.retrieval import list_protocols

# readers of custom data have no card
CUSTOM = {"folder", "manifest", "pattern"}
REPOSITORIES = {
    "https://github.com/924973292/IDEA",
    "https://github.com/Mzq12138/Official-Implementation-for-Flare-Aware-Cross-modal-Enhancement-for-Multi-spectral-Vehicle-ReID",
    "https://github.com/lsh-ahu/ICPL-ReID",
    "https://github.com/lsh-ahu/NEXT-ReID",
    "https://github.com/superlollipop123/Cross-directional-Center-Network-and-MSVR310",
    "https://github.com/ttaalle/multi-modal-vehicle-Re-ID",
    "https://github.com/ziwang1121/IEEE",
}


def test_every_published_dataset_has_a_card():
    assert set(list_cards()) == {name for name in list_datasets() if name not in CUSTOM}
    with pytest.raises(ValueError, match=r"unknown dataset card 'veri'.*msvr310"):
        data_card("veri")


@pytest.mark.parametrize("name", list_cards())
def test_cards_are_whole(name):
    card = data_card(name)
    assert card.name == name and card.protocol in list_protocols()
    assert date.fromisoformat(card.last_checked) <= date.today()
    assert card.obtain and card.terms and card.paper and card.defects
    assert set(card.counts) <= {"train", "query", "gallery"}
    assert {overlap.test for overlap in card.overlaps} <= set(list_cards())
    links = re.findall(r"https?://[^\s,)]+", " ".join((*card.obtain, *card.captions)))
    assert set(links) <= REPOSITORIES
    text = str(card)
    for part in (card.title, card.name, card.last_checked, *card.modalities):
        assert part in text
    for defect in card.defects:
        assert " ".join(defect.split()) in " ".join(text.split())
    # links are never broken over lines
    assert all(len(line) <= 110 or line.lstrip(" -").startswith("https://") for line in text.splitlines())


@pytest.mark.parametrize("name", ["rgbnt201", "msvr310"])
def test_counts_are_those_of_the_published_names(published_captions, name):
    def names(split):
        path = published_captions / "NEXT" / name.upper() / f"{split}_RGB.json"
        return [entry["item"] for entry in json.loads(path.read_text(encoding="utf-8"))]

    form = re.compile(r"(?P<pid>\d+)_(?:cam(?P<cam>\d)|s(?P<scene>\d+)_v(?P<view>\d)).*")
    test = [form.fullmatch(item).groupdict() for item in names("test")]
    scenes = Counter(pid for pid, _ in {(row["pid"], row["scene"]) for row in test})
    query = test if name == "rgbnt201" else [row for row in test if scenes[row["pid"]] > 1]
    train = [form.fullmatch(item).groupdict() for item in names("train")]
    for split, rows in (("train", train), ("query", query), ("gallery", test)):
        cameras = {row["cam"] or row["view"] for row in rows}
        counted = {"samples": len(rows), "ids": len({row["pid"] for row in rows}), "cameras": len(cameras)}
        assert data_card(name).counts[split] == counted


def test_the_known_leak_is_an_error(caplog):
    with pytest.raises(
        ValueError, match=r"trained on wmveid863 .*evaluated on msvr310: .*1,048 of its 1,055.*allow=True"
    ):
        reject_leak("wmveid863", "msvr310")
    with pytest.raises(ValueError, match="wmveid863"):
        reject_leak(["rgbnt201", "wmveid863"], "msvr310")
    assert not caplog.records
    reject_leak("wmveid863", "msvr310", allow=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_suspected_overlaps_are_warned_of(caplog):
    reject_leak("msvr310", "wmveid863")
    reject_leak("rgbn300", "rgbnt100")
    assert len(caplog.records) == 2 and "12 samples" in caplog.text


@pytest.mark.parametrize(
    ("trained_on", "test_set"),
    [("msvr310", "msvr310"), ("wmveid863", "wmveid863"), ("my-own", "msvr310"), ("wmveid863", "mine"), ([], "msvr310")],
)
def test_the_rest_passes_in_silence(trained_on, test_set, caplog):
    reject_leak(trained_on, test_set)
    assert not caplog.records


def test_overlaps_are_listed():
    pairs = {(overlap.trained_on, overlap.test): overlap.rejected for overlap in list_overlaps()}
    assert pairs == {
        ("wmveid863", "msvr310"): True,
        ("msvr310", "wmveid863"): False,
        ("rgbn300", "rgbnt100"): False,
        ("rgbnt100", "rgbn300"): False,
    }
    assert all(isinstance(overlap, Overlap) and overlap.evidence for overlap in list_overlaps())
    assert isinstance(data_card("msvr310"), DataCard)


def test_cards_are_stored_as_they_are_named():
    for path in (Path(__file__).parents[2] / "nextreid" / "data" / "cards").iterdir():
        assert json.loads(path.read_text(encoding="utf-8"))["name"] == path.stem


def copy_of(name: str, train: int, ids: int, cameras: int, modalities: int = 3) -> ReIDDataset:
    """So many training samples in memory, the first without its last images; counted only, never opened."""
    card = data_card(name)
    whole, part = (Path("a.jpg"),) * 3, (*(Path("a.jpg"),) * modalities, *(None,) * (3 - modalities))
    samples = [Sample(str(i), i % ids, i % cameras, -1, part if i < 5 else whole) for i in range(train)]
    test = [Sample(str(i), i % 30, i // 30 % 2, -1, whole) for i in range(836)]
    return ReIDDataset(name, card.modalities, "person", name, tuple(samples), tuple(test), tuple(test))


def test_an_incomplete_copy_is_recognised_from_the_counts():
    assert missing_counts(copy_of("rgbnt201", 3951, 171, 4)) == []
    assert missing_counts(copy_of("synthetic-persons", 1, 1, 1)) == []
    assert missing_counts(copy_of("rgbnt201", 3000, 100, 3)) == [
        "train: 3,000 of 3,951 samples, 100 of 171 ids, 3 of 4 cameras, cameras there are 0, 1, 2"
    ]
    assert missing_counts(copy_of("rgbnt201", 3951, 171, 4, modalities=2)) == ["train: 3,946 of 3,951 tir images"]


def test_loading_an_incomplete_copy_logs_it(write_rgbnt201, caplog):
    load_dataset("rgbnt201", write_rgbnt201())
    (message,) = caplog.messages
    assert message.startswith("rgbnt201: not the whole dataset as published: train: 5 of 3,951 samples, 3 of 171 ids")
    assert "cameras there are 1, 2, 3" in message
