"""Checkpoints from the hub and to it: the hub's own client against a stand-in on the loopback."""

import json
import os
import subprocess
import sys
import time

import hub_server
import huggingface_hub
import open_clip
import pytest
import timm
import torch
from hub_server import _ROUTES, Hub
from safetensors.torch import save_file
from zoo import random_images, small

import nextreid
from nextreid.models import PretrainedCfg, _registry
from nextreid.models._hub import SUMS

FILES = ["README.md", "SHA256SUMS", "config.json", "golden.safetensors", "model.safetensors"]
NAME = "hf-hub:owner/name"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint folder with its proof; tests read it and leave it as it is."""
    return nextreid.save_pretrained(small("next_tiny", num_classes=4), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    constants = huggingface_hub.constants  # read from the environment when the client was imported
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    for place in (constants, huggingface_hub.file_download):  # older clients have it there
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between its tries
    yield server
    server.close()


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_model_comes_from_the_hub_as_it_was_saved(hub, saved, tmp_path):
    hub.commit_folder("owner/name", saved)
    here = nextreid.create_model(f"local-dir:{saved}")
    assert equal(nextreid.create_model(NAME), here)
    assert equal(nextreid.create_model("hf_hub:owner/name"), here)
    loaded = nextreid.from_pretrained("owner/name", num_classes=0, cache_dir=tmp_path / "elsewhere")
    assert not loaded.training and loaded.num_classes == 0
    assert torch.equal(loaded(random_images(here)), here.eval()(random_images(here)).embedding)
    assert (tmp_path / "elsewhere" / "models--owner--name").is_dir()
    assert not [path for _, path in hub.asked if path.endswith("README.md")]


def test_a_revision_is_what_it_names(hub, tmp_path):
    folders = [nextreid.save_pretrained(small("baseline_tiny", num_classes=n), tmp_path / str(n)) for n in (2, 3)]
    first = hub.commit_folder("owner/name", folders[0], "v1")
    hub.commit_folder("owner/name", folders[1])
    assert nextreid.create_model(NAME).num_classes == 3
    assert nextreid.create_model(f"{NAME}@v1").num_classes == 2
    assert nextreid.create_model(f"{NAME}@{first}").num_classes == 2
    assert nextreid.from_pretrained("owner/name", revision="v1").num_classes == 2
    with pytest.raises(FileNotFoundError, match="hf-hub:owner/name has no revision 'v9'"):
        nextreid.create_model(f"{NAME}@v9")
    with pytest.raises(FileNotFoundError, match="no hub repository 'owner/other'"):
        nextreid.create_model("hf-hub:owner/other")
    with pytest.raises(ValueError, match="Repo id"):
        nextreid.create_model("hf-hub:../../etc@main")


def test_a_tag_with_a_hub_repository_loads_it(hub, saved, monkeypatch):
    hub.commit_folder("owner/name", saved, "v1")
    cfg = PretrainedCfg(architecture="next_tiny", tag="hubbed", hf_hub_id="owner/name@v1")
    monkeypatch.setitem(_registry._CFGS, "next_tiny", {"": PretrainedCfg(architecture="next_tiny"), "hubbed": cfg})
    assert "next_tiny.hubbed" in nextreid.list_pretrained()
    args = json.loads((saved / "config.json").read_text())["model_args"]
    model = nextreid.create_model("next_tiny.hubbed", pretrained=True, **args)
    assert equal(model, nextreid.create_model(f"local-dir:{saved}"))


def test_the_cache_serves_when_the_hub_does_not(hub, saved, monkeypatch):
    hub.commit_folder("owner/name", saved)
    nextreid.create_model(NAME)
    hub.down = True
    assert nextreid.create_model(NAME).num_classes == 4
    hub.down = False
    asked = len(hub.asked)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert nextreid.create_model(NAME).num_classes == 4
    assert len(hub.asked) == asked
    with pytest.raises(ConnectionError, match="hf-hub:owner/other is not in the cache"):
        nextreid.create_model("hf-hub:owner/other")


def test_a_hub_that_is_gone_is_reported(hub, saved):
    hub.close()
    with pytest.raises(ConnectionError, match="hf-hub:owner/name is not in the cache and the hub cannot be asked"):
        nextreid.create_model(NAME)


def test_a_truncated_download_never_loads_and_the_next_one_goes_on(hub, saved):
    hub.commit_folder("owner/name", saved)
    hub.cut = {"model.safetensors"}
    with pytest.raises(ConnectionError, match="the download of hf-hub:owner/name broke off"):
        nextreid.create_model(NAME)
    hub.cut = set()
    assert equal(nextreid.create_model(NAME), nextreid.create_model(f"local-dir:{saved}"))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_other_bytes_than_those_of_the_hashes_are_rejected(hub, saved, file):
    hub.commit_folder("owner/name", saved)
    data = bytearray((saved / file).read_bytes())
    data[-2] ^= 1
    hub.swapped = {file: bytes(data)}
    with pytest.raises(ValueError, match=rf"{file} was truncated or altered"):
        nextreid.create_model(NAME)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(hub, saved, file):
    hub.commit("owner/name", {p.name: p.read_bytes() for p in saved.iterdir() if p.name != file})
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing"):
        nextreid.create_model(NAME)


def test_an_old_folder_without_proof_loads(hub, tmp_path):
    hub.commit_folder("owner/name", nextreid.save_model(small("baseline_tiny"), tmp_path / "old"))
    assert nextreid.create_model(NAME).num_classes == 0
    found = nextreid.verify_checkpoint(NAME)
    assert [f.name for f in found if f.note == "missing"] == [SUMS, "golden.safetensors"]


def test_a_pushed_model_comes_back_and_keeps_the_card_there(hub):
    model = small("baseline_tiny", num_classes=3)
    address = nextreid.push_to_hub(model, "owner/name", commit_message="First")
    first = hub.refs["owner/name"]["main"]
    assert address == f"{hub.address}/owner/name/commit/{first}"
    assert sorted(hub.commits["owner/name"][first]) == FILES
    assert equal(nextreid.create_model(NAME), model)
    assert all(finding.ok for finding in nextreid.verify_checkpoint(NAME))
    hub.commit("owner/name", {"README.md": b"edited"})
    model.reset_classifier(5)
    nextreid.push_to_hub(model, "owner/name")
    files = hub.commits["owner/name"][hub.refs["owner/name"]["main"]]
    assert files["README.md"] == b"edited"
    assert json.loads(files["config.json"])["num_classes"] == 5
    with pytest.raises(ValueError, match="Repo id"):
        nextreid.push_to_hub(model, "../owner")


def test_large_files_are_put_beside_the_commit(hub, monkeypatch):
    """As a hub takes weights where the client does not speak its newer protocol."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)
    hub.large = {"model.safetensors", "golden.safetensors"}
    model = small("next_tiny", num_classes=3)
    nextreid.push_to_hub(model, "owner/name")
    assert len(hub.stored) == 2 and ("POST", "/owner/name.git/info/lfs/objects/batch") in hub.asked
    assert equal(nextreid.create_model(NAME), model)
    assert all(finding.ok for finding in nextreid.verify_checkpoint(NAME))
    monkeypatch.setattr(hub, "stored", None)  # the store breaks: no commit with files that are not there
    before = hub.refs["owner/name"]["main"]
    model.reset_classifier(5)
    with pytest.raises(OSError, match=r"owner/name took no file: .*(model|golden)\.safetensors"):
        nextreid.push_to_hub(model, "owner/name")
    assert hub.refs["owner/name"]["main"] == before


def test_towers_come_from_a_clip_on_the_hub(hub, tmp_path, monkeypatch):
    """What ``next_clip_b16`` with ``pretrained=True`` does, at a size that a test can afford."""
    name = "nextreid-test-hub-clip"
    settings = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 768, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(settings))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    openai = open_clip.get_pretrained_cfg("ViT-B-16-quickgelu", "openai")
    assert openai["hf_hub"] == "timm/vit_base_patch16_clip_224.openai/"  # where the real ones are
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"openai": {**openai, "hf_hub": "timm/tiny.openai/"}})
    source = open_clip.create_model(name)
    save_file({k: v.contiguous() for k, v in source.state_dict().items()}, tmp_path / "clip.safetensors")
    weights = {"open_clip_model.safetensors": (tmp_path / "clip.safetensors").read_bytes()}
    hub.commit("timm/tiny.openai", weights)
    model = nextreid.create_model(
        "next_clip_b16",
        pretrained=True,
        pretrained_cfg_overlay={"clip": (name, "openai")},
        text_tower=name,
        embed_dim=32,
        image_tower_args={"depth": 1},
        img_size=(64, 32),
        cache_dir=str(tmp_path / "cache"),
    )
    state, given = model.state_dict(), source.state_dict()
    assert torch.equal(state["image_tower.0.proj.weight"], given["visual.proj"].T)
    assert torch.equal(
        state["image_tower.0.trunk.blocks.0.mlp.fc1.weight"], given["visual.transformer.resblocks.0.mlp.c_fc.weight"]
    )
    assert torch.equal(state["text_tower.transformer.token_embedding.weight"], given["token_embedding.weight"])
    assert model.loaded_weights == model.pretrained_cfg.base_weights == f"CLIP {name}, openai"
    assert ("GET", f"/timm/tiny.openai/resolve/main/{next(iter(weights))}") in hub.asked


def test_an_image_tower_comes_from_timm_on_the_hub(hub, tmp_path):
    source = timm.create_model("test_vit")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    hub.commit("timm/test_vit.r160_in1k", {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    where = {"text_tower": None, "embed_dim": 32, "cache_dir": str(tmp_path / "cache")}
    model = nextreid.create_model("next", pretrained=True, image_tower="test_vit", img_size=(160, 160), **where)
    state, given = model.state_dict(), source.state_dict()
    trunk = {key.removeprefix("image_tower.0.trunk."): value for key, value in state.items() if ".trunk." in key}
    assert trunk.keys() == {key for key in given if not key.startswith(("head.", "fc_norm."))}
    assert all(torch.equal(value, given[key]) for key, value in trunk.items())
    assert model.loaded_weights == model.pretrained_cfg.base_weights == "timm test_vit.r160_in1k"
    other = nextreid.create_model("next", pretrained=True, image_tower="test_vit", img_size=(64, 32), **where)
    assert other.image_tower[0].trunk.pos_embed.shape[1] == 4 * 2 + 1  # resampled by timm
    saved = nextreid.save_model(other, tmp_path / "saved")
    hub.asked.clear()
    back = nextreid.create_model(f"local-dir:{saved}").state_dict()
    assert not hub.asked and all(torch.equal(value, back[key]) for key, value in other.state_dict().items())
    with pytest.raises(ValueError, match="do not fit"):
        nextreid.create_model("next", pretrained=True, image_tower="test_vit", image_tower_args={"depth": 1}, **where)
    with pytest.raises(ValueError, match="no weights for 'vit_base_patch16_xp_224'"):
        small("next", pretrained=True, image_tower="vit_base_patch16_xp_224", text_tower=None)
    with pytest.raises(ValueError, match="text_tower=None"):
        small("next", pretrained=True)


@pytest.mark.slow
def test_the_variables_of_the_hub_client_hold(hub, saved, tmp_path):
    """A mirror, a home and being offline, set from outside as a user sets them."""
    hub.commit_folder("owner/name", saved)
    nextreid.create_model(NAME, cache_dir=str(tmp_path / "offline" / "hub"))
    hub.asked.clear()
    code = 'import nextreid; print(nextreid.create_model("hf-hub:owner/name").num_classes)'
    runs = {}
    for name, variables in {
        "mirrored": {"HF_ENDPOINT": hub.address},
        "offline": {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"},
    }.items():
        known = {**os.environ, **variables, "HF_HOME": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        runs[name] = subprocess.Popen(
            [sys.executable, "-c", code], env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for run in runs.values():
        out, errors = run.communicate(timeout=120)
        assert out == "4\n", errors
    assert (tmp_path / "mirrored" / "hub" / "models--owner--name").is_dir()
    assert ("GET", "/api/models/owner/name/revision/main") in hub.asked


def test_nothing_is_fetched_that_is_larger_than_its_kind(hub, saved):
    hub.commit("owner/name", {p.name: p.read_bytes() for p in saved.iterdir()} | {"config.json": b" " * (2**20 + 1)})
    with pytest.raises(ValueError, match=r"config\.json has 1048577 bytes, more than the 1048576"):
        nextreid.create_model(NAME)
    assert not [path for verb, path in hub.asked if verb == "GET" and "resolve" in path]


@pytest.mark.parametrize("label", ["etag", "commit"])
def test_a_hub_that_names_paths_is_rejected(hub, saved, label, tmp_path, monkeypatch):
    """The client names files in its cache by what the hub calls them."""
    hub.commit_folder("owner/name", saved)
    odd = {"etag": {"ETag": '"../../../evil"'}, "commit": {"X_Repo_Commit": "../../../evil"}}[label]
    send = hub_server._Handler._send
    monkeypatch.setattr(hub_server._Handler, "_send", lambda self, *args, **told: send(self, *args, **{**told, **odd}))
    with pytest.raises(ValueError, match="the hub's labels of config"):
        nextreid.create_model(NAME)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("answer", [b"{", b"[]", b'{"siblings": 5}', b'{"sha": 3, "siblings": [{"rfilename": 7}]}'])
def test_answers_that_make_no_sense_are_one_error(hub, saved, answer, monkeypatch):
    hub.commit_folder("owner/name", saved)
    monkeypatch.setattr(hub_server._Handler, "info", lambda self, body, **_: self._send(200, answer))
    monkeypatch.setattr(
        hub_server,
        "_ROUTES",
        tuple((v, p, hub_server._Handler.info if a.__name__ == "info" else a) for v, p, a in _ROUTES),
    )
    with pytest.raises(OSError, match="owner/name"):
        nextreid.create_model(NAME)


@pytest.mark.parametrize("model", ["next_clip_b16", "next"])
def test_pretrained_towers_without_a_network_are_one_error_after_one_try(hub, monkeypatch, model):
    hub.close()
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    where = {"text_tower": None, "image_tower": "test_vit", "img_size": (64, 32)} if model == "next" else {}
    arguments = {"image_tower_args": {"depth": 1}, "pretrained": True, **where}
    with pytest.raises(
        ConnectionError, match=r"hf-hub:timm/\S+ is not in the cache and the hub cannot be asked \(HF_END"
    ):
        small(model, **arguments)
    assert not slept  # the client waits a minute and more before it gives up


def test_clip_weights_that_open_clip_does_not_have_are_named(hub):
    with pytest.raises(ValueError, match=r"unknown tag 'opanai'. Did you mean 'openai'"):
        small("baseline_clip_b16", pretrained=True, pretrained_cfg_overlay={"clip": ("ViT-B-16-quickgelu", "opanai")})
