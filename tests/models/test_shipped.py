"""The bundled weights: whole, small, offline, honest on their card, and trained."""

import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

import nextreid
from benchmarks.paper.pointing import pointing
from nextreid.engine import evaluate
from nextreid.engine.provenance import record_training, trained_sets
from nextreid.models import get_pretrained_cfg, verify_checkpoint
from nextreid.models._golden import golden_input
from nextreid.models._pretrained import BUNDLED
from nextreid.synthetic import synthetic_persons

NAMES = ("baseline_tiny.synthetic_persons", "next_tiny.synthetic_persons")
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("bundled weights need no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def strangers():
    """Persons, cameras and places of a world that no training knew."""
    return synthetic_persons("tiny", seed=77, num_test=8, splits=("test",)).dataset


def test_what_is_bundled_is_listed_and_small():
    folders = sorted(path.name for path in BUNDLED.iterdir())
    assert folders == sorted(NAMES) and set(NAMES) <= set(nextreid.list_pretrained())
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= 8e6


@every_name
def test_the_proof_holds(name):
    assert [finding for finding in verify_checkpoint(BUNDLED / name) if not finding.ok] == []


@every_name
def test_a_name_gives_the_weights_without_a_network(name, offline):
    architecture = name.partition(".")[0]
    model = nextreid.create_model(architecture, pretrained=True).eval()
    golden = load_file(BUNDLED / name / "golden.safetensors")["embedding"]
    assert (model(*golden_input(model)) - golden).norm() <= 1e-3 * golden.norm()
    assert all(value.dtype == torch.float32 for value in model.state_dict().values() if value.is_floating_point())
    tagged = nextreid.create_model(name, pretrained=True, num_classes=3)
    assert torch.equal(tagged.image_tower[0].proj.weight, model.image_tower[0].proj.weight) and tagged.num_classes == 3
    assert model.loaded_weights == str(BUNDLED / name)
    untrained = nextreid.create_model(architecture)
    assert untrained.pretrained_cfg.trained_on is None and untrained.loaded_weights is None


@every_name
def test_the_card_and_the_configuration_record_where_they_come_from(name):
    cfg = nextreid.create_model(name, pretrained=True).pretrained_cfg
    assert cfg.tag == get_pretrained_cfg(name).tag == "synthetic_persons"
    assert cfg.protocol == "synthetic-persons" and cfg.license == "Apache-2.0" and "no use" in cfg.notes
    assert [cfg.trained_on["dataset"], cfg.trained_on["start"]["dataset"]] == [
        "synthetic-persons",
        "synthetic-persons, pretrain pool",
    ]
    card = (BUNDLED / name / "README.md").read_text()
    for fact in ("Licences", "synthetic-persons", "last, of a number fixed beforehand", "without RGB", "other worlds"):
        assert fact in card
    assert f"{cfg.metrics['mAP']:.4g}" in card and f"{100 * round(cfg.metrics['mAP'], 4):.1f} /" in card
    assert ("| backpack |" in card) == ("next" in name)


def test_another_image_size_takes_the_figures_away(caplog):
    model = nextreid.create_model("baseline_tiny", pretrained=True, img_size=(128, 64))
    assert "resampled from 64x32 images to 128x64" in caplog.text
    assert model.pretrained_cfg.metrics is model.pretrained_cfg.protocol is None and model.pretrained_cfg.trained_on


def test_other_weights_on_top_take_the_name_and_the_figures_away(tmp_path):
    state = nextreid.create_model("baseline_tiny").state_dict()
    save_file(state, tmp_path / "other.safetensors")
    model = nextreid.create_model("baseline_tiny", pretrained=True, checkpoint_path=tmp_path / "other.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.loaded_weights == str(tmp_path / "other.safetensors")
    cfg = model.pretrained_cfg
    assert cfg.tag == "" and not any((cfg.metrics, cfg.trained_on, cfg.notes, cfg.license, cfg.base_weights))


def test_new_training_takes_the_name_and_the_figures_away():
    model = nextreid.create_model("next_tiny", pretrained=True)
    record_training(model, {"dataset": "mine"}, model.pretrained_cfg.trained_on)
    cfg = model.pretrained_cfg
    assert cfg.tag == "" and not any((cfg.metrics, cfg.protocol, cfg.notes, cfg.license, cfg.data_license))
    assert trained_sets(model) == ["mine", "synthetic-persons", "synthetic-persons, pretrain pool"]


@every_name
def test_strangers_are_found_again(name, strangers):
    architecture = name.partition(".")[0]
    torch.manual_seed(0)
    before = evaluate(nextreid.create_model(architecture), strangers).to_dict()
    after = evaluate(nextreid.create_model(architecture, pretrained=True), strangers).to_dict()
    assert after["mAP"] > 0.75 and after["mAP"] > before["mAP"] + 0.3


def test_sentences_point_at_what_they_speak_of(strangers):
    rows = pointing(nextreid.create_model("next_tiny", pretrained=True), strangers.query)
    found = {(row["modality"], row["part"]): row for row in rows}
    for modality in ("rgb", "nir", "tir"):
        for part in ("upper", "hair", "backpack"):
            row = found[modality, part]
            assert row["accuracy"] > 0.5 > 2 * row["chance"], row
