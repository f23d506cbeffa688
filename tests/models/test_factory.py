"""Names, tags, prefixes, folders: the factory keeps timm's semantics and never loads wrongly without a word."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo import random_images, small

import nextreid
from nextreid.models import PretrainedCfg, _registry, get_pretrained_cfg, load_config
from nextreid.models._pretrained import generate_default_cfgs


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return nextreid.save_model(small("baseline_tiny", num_classes=4), tmp_path / "model")


@pytest.fixture
def tagged(monkeypatch, folder):
    """An architecture with two tags, one of them with weights."""

    def toy(pretrained=False, **kwargs):
        return nextreid.models.baseline._create_baseline("toy", pretrained, **kwargs)

    cfgs = generate_default_cfgs(
        {"toy.a2": PretrainedCfg(file=str(folder)), "toy.a10": PretrainedCfg(), "toy.b": PretrainedCfg(file="nowhere")}
    )
    monkeypatch.setitem(_registry._ENTRYPOINTS, "toy", toy)
    monkeypatch.setitem(_registry._CFGS, "toy", cfgs["toy"])
    return "toy"


def test_listing_follows_timm(tagged):
    assert nextreid.list_models("next_clip_*") == ["next_clip_b16", "next_clip_b16_vehicle", "next_clip_l14"]
    assert nextreid.list_models(["next_*", "toy"], exclude_filters="*_clip_*") == ["next_tiny", "toy"]
    assert set(nextreid.list_models("*_tiny")) - set(nextreid.list_models("*_tiny", exclude_filters="next*")) == {
        "next_tiny"
    }
    assert nextreid.list_models("toy", include_tags=True) == ["toy.a2", "toy.a10", "toy.b"]
    assert nextreid.list_models("toy*", pretrained=True) == ["toy.a2", "toy.b"] == nextreid.list_pretrained("toy.*")
    assert nextreid.list_models("toy.a*", pretrained=True) == ["toy.a2"]
    assert nextreid.is_model("toy") and nextreid.is_model("toy.any") and not nextreid.is_model("tox")
    assert get_pretrained_cfg("toy").tag == "a2" and get_pretrained_cfg("toy.b").file == "nowhere"
    with pytest.raises(ValueError, match=r"no weights tagged 'c'; tags: a2, a10, b"):
        get_pretrained_cfg("toy.c")


def test_no_tag_is_listed_without_weights():
    for name in nextreid.list_pretrained():
        assert get_pretrained_cfg(name).has_weights


def test_a_tag_and_an_overlay_choose_the_weights(tagged, folder):
    kwargs = {"img_size": (32, 16), "num_classes": 4, **_tiny()}
    expected = load_file(folder / "model.safetensors")
    model = nextreid.create_model("toy.a2", pretrained=True, **kwargs)
    assert torch.equal(model.state_dict()["image_tower.0.proj.weight"], expected["image_tower.0.proj.weight"])
    with pytest.raises(ValueError, match="no pretrained weights for 'toy'"):
        nextreid.create_model("toy.a10", pretrained=True, **kwargs)
    overlaid = nextreid.create_model(
        "toy.a10", pretrained=True, pretrained_cfg_overlay={"file": str(folder / "model.safetensors")}, **kwargs
    )
    assert torch.equal(overlaid.state_dict()["image_tower.0.proj.weight"], expected["image_tower.0.proj.weight"])
    untrained = nextreid.create_model("toy.a10", pretrained_cfg="b", **kwargs).pretrained_cfg
    assert untrained.file == "nowhere" and untrained.tag == ""  # no weights, so not their name
    with pytest.raises(ValueError, match="unknown pretrained_cfg field fiel"):
        nextreid.create_model("toy", pretrained_cfg_overlay={"fiel": 1}, **kwargs)


def _tiny():
    from nextreid.models._tiny import TINY_IMAGE

    return {k: v for k, v in TINY_IMAGE.items() if k != "img_size"}


def test_none_arguments_are_left_out():
    """As in timm; a text tower of None is the exception, and survives the folder."""
    assert nextreid.create_model("baseline_tiny", num_classes=None, pool=None).num_classes == 0


def test_no_text_tower_is_a_setting(tmp_path):
    nextreid.save_model(small("next_tiny", text_tower=None), tmp_path / "m")
    assert nextreid.create_model(f"local-dir:{tmp_path / 'm'}").text_tower is None


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("next_tinny", "Did you mean 'next_tiny'"),
        ("zzz", "Known: baseline, baseline_clip_b16"),
        ("hub:owner/name", "local-dir:FOLDER"),
        ("some/folder", "local-dir:FOLDER"),
        ("C:\\models\\m", "local-dir:FOLDER"),
    ],
)
def test_unknown_names_are_answered_by_what_there_is(name, named):
    with pytest.raises(ValueError, match=named):
        nextreid.create_model(name)


def test_config_is_json_with_timms_keys(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "baseline_tiny" and config["num_classes"] == 4
    assert config["num_features"] == 192 and config["model_args"]["img_size"] == [32, 16]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 16] and "file" not in config["pretrained_cfg"]
    assert load_config(folder) == config


def test_saving_again_replaces_and_never_overwrites_something_else(folder, tmp_path):
    model = small("baseline_tiny")
    nextreid.save_model(model, folder)
    assert nextreid.create_model(f"local-dir:{folder}").num_classes == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="not a checkpoint folder"):
        nextreid.save_model(model, tmp_path / "photos")
    with pytest.raises(ValueError, match="not built by create_model"):
        nextreid.save_model(torch.nn.Linear(2, 2), tmp_path / "other")


def test_a_failed_save_leaves_the_old_checkpoint(folder, tmp_path, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("nextreid.models._hub.write_tensors", full_disk)
    with pytest.raises(OSError, match="No space"):
        nextreid.save_model(small("baseline_tiny"), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_classifier_of_another_size_starts_again_and_is_logged(folder, caplog):
    with caplog.at_level(logging.WARNING):
        model = nextreid.create_model(f"local-dir:{folder}", num_classes=9)
    assert model.num_classes == 9 and "does not fit 9 classes" in caplog.text
    expected = load_file(folder / "model.safetensors")
    assert torch.equal(model.state_dict()["image_tower.0.proj.weight"], expected["image_tower.0.proj.weight"])


def test_checkpoint_path_loads_after_building(folder):
    model = small("baseline_tiny", checkpoint_path=folder)
    expected = nextreid.create_model(f"local-dir:{folder}", num_classes=0).eval()
    assert torch.equal(model.eval()(random_images(model)), expected(random_images(model)))


def test_mismatches_are_named(folder, tmp_path):
    other = nextreid.save_model(small("baseline_tiny", num_cameras=2), tmp_path / "cams")
    with pytest.raises(ValueError, match="trained with num_cameras=2, the model has num_cameras=3"):
        nextreid.create_model(f"local-dir:{other}", num_cameras=3)
    (other / "config.json").unlink()
    with pytest.raises(ValueError, match=r"image_tower.0.camera is \(2, 96\), the model has \(3, 96\)"):
        small("baseline_tiny", num_cameras=3, checkpoint_path=other)
    state = load_file(folder / "model.safetensors")
    state["extra.weight"] = state.pop("image_tower.0.proj.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing image_tower.0.proj.weight; unexpected extra.weight"):
        nextreid.create_model(f"local-dir:{folder}")


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        nextreid.create_model(f"local-dir:{tmp_path / 'nowhere'}")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or truncated"):
        nextreid.create_model(f"local-dir:{folder}")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no weights at"):
        nextreid.create_model(f"local-dir:{folder}")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        nextreid.create_model(f"local-dir:{folder}")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="names no architecture"):
        nextreid.create_model(f"local-dir:{folder}")


def test_pickles_are_never_read(tmp_path):
    pickle = tmp_path / "weights.pth"
    pickle.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ValueError, match=r"not a \.safetensors file"):
        small("baseline_tiny", checkpoint_path=pickle)


def test_registering_twice_from_two_modules_is_an_error():
    def next_tiny(pretrained=False, **kwargs):
        return None

    with pytest.raises(ValueError, match=r"registered already, by nextreid\.models\.next"):
        nextreid.register_model(next_tiny)
    with pytest.raises(ValueError, match="function's name"):
        nextreid.register_model(lambda pretrained=False: None)


@pytest.mark.parametrize("form", [str, Path, lambda folder: f"~/{folder.name}", lambda folder: f"local-dir:{folder}"])
def test_a_checkpoint_folder_is_a_name(tmp_path, monkeypatch, form):
    model = small("baseline_tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    again = nextreid.create_model(form(nextreid.save_model(model, tmp_path / "model")))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_model_goes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nextreid.save_model(small("baseline_tiny"), Path("next_tiny"))
    assert nextreid.create_model("next_tiny").uses_text
    assert not any(nextreid.create_model(name).uses_text for name in ("./next_tiny", "local-dir:next_tiny"))


def test_the_folder_of_a_run_points_at_its_checkpoints(tmp_path):
    nextreid.save_model(small("baseline_tiny"), tmp_path / "run" / "last")
    with pytest.raises(FileNotFoundError, match=r"run is the folder of a run, take .*run/last$"):
        nextreid.create_model(tmp_path / "run")
    nextreid.save_model(small("baseline_tiny"), tmp_path / "run" / "best")
    with pytest.raises(FileNotFoundError, match=r"run/last or .*run/best$"):
        nextreid.create_model(f"local-dir:{tmp_path / 'run'}")
