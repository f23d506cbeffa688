"""Files of others run no code and lead nowhere: pickles, paths in configurations, lists of files and manifests."""

import json
import os

import pytest
import torch
from PIL import Image

import nextreid
from nextreid.data import read_manifest

NOT_PLAIN = {
    "checkpoint_path": "evil.pth",
    "pretrained": True,
    "pretrained_cfg": {"file": "evil.pth"},
    "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x"},
    "cache_dir": "/tmp",
    "features_only": True,
}


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def checkpoint(tmp_path):
    folder = nextreid.save_model(nextreid.create_model("baseline_tiny"), tmp_path / "model")
    torch.save({"state_dict": {}, "x": Evil(f"touch {tmp_path / 'ran'}")}, folder / "evil.pth")
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Files that torch was asked to unpickle."""
    real, seen = torch.load, []

    def load(file, *args, **kwargs):
        seen.append(file)
        return real(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", load)
    return seen


@pytest.mark.parametrize("place", ["image_tower_args", "model_args", "pretrained_cfg"])
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_no_path_in_a_configuration_reaches_a_dependency(checkpoint, opened, tmp_path, place, name):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    args = config["model_args"]
    table = {
        "image_tower_args": args["image_tower_args"],
        "model_args": args,
        "pretrained_cfg": config["pretrained_cfg"],
    }
    value = NOT_PLAIN[name]
    table[place][name] = str(checkpoint / value) if value == "evil.pth" else value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=name):
        nextreid.create_model(f"local-dir:{checkpoint}")
    assert not opened and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["evil.pth", "model.safetensors"])
def test_a_pickle_is_never_read_as_weights(checkpoint, opened, tmp_path, name):
    pickled = (checkpoint / "evil.pth").read_bytes()
    (checkpoint / name).write_bytes(pickled)
    with pytest.raises(ValueError, match=name):
        nextreid.create_model("baseline_tiny", checkpoint_path=checkpoint / name)
    assert not opened and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("listed", ["../model.safetensors", "/etc/passwd", "..", "a/b"])
def test_a_list_of_sums_names_files_of_its_folder_alone(checkpoint, listed):
    (checkpoint / "SHA256SUMS").write_text(f"{'0' * 64}  {listed}\n")
    with pytest.raises(ValueError, match="SHA256SUMS"):
        nextreid.create_model(f"local-dir:{checkpoint}")


@pytest.mark.parametrize("cell", ["../secret.png", "{folder}/secret.png", "x/../../secret.png", "..\\secret.png"])
def test_a_manifest_leads_to_images_of_its_folder_alone(tmp_path, cell):
    home = tmp_path / "data"
    home.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (home / "m.csv").write_text(f"pid,camid,rgb\n1,0,{cell.format(folder=tmp_path)}\n")
    with pytest.raises((ValueError, FileNotFoundError), match=r"secret\.png"):
        read_manifest(home / "m.csv")
