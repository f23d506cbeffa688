"""A folder that proves itself: hashes, golden embedding, card; and folders that were cut, changed or never proven."""

import hashlib
import json
import os
import resource
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from zoo import fill, small

import nextreid
from nextreid import _disk
from nextreid._files import read_tensors
from nextreid.models import _golden, _publish
from nextreid.models._builder import load_checkpoint
from nextreid.models._card import model_card
from nextreid.models._golden import golden_input

PIXELS = "49b49930e03df6ede0e33b5e0fc4ba0ace72fcd40bfec254bc443dd0df33fc37"
FILES = ["README.md", "SHA256SUMS", "config.json", "golden.safetensors", "model.safetensors"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return nextreid.save_pretrained(small("next_tiny", num_classes=4), tmp_path_factory.mktemp("verify") / "model")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def sum_again(folder):
    """Rewrite the hashes, as one would who hides a change."""
    names = ("config.json", "golden.safetensors", "model.safetensors")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def failures(folder):
    return {name: note for name, ok, note in nextreid.verify_checkpoint(folder) if not ok}


@pytest.mark.parametrize("name", nextreid.list_models("*_tiny"))
@pytest.mark.parametrize("changes", [{}, {"modalities": ("rgb",), "num_cameras": 2}])
def test_a_saved_folder_proves_itself(name, changes, tmp_path):
    model = small(name, num_classes=3, **changes)
    state = torch.random.get_rng_state()
    folder = nextreid.save_pretrained(model, tmp_path / "m")
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted([*FILES, "m"])
    found = nextreid.verify_checkpoint(f"local-dir:{folder}")
    computed = ["golden input", "golden embedding", *(["golden caption"] if model.uses_text else [])]
    assert [f.name for f in found] == ["config.json", "model.safetensors", "golden.safetensors", *computed]
    assert all(f.ok for f in found)


def test_the_embedding_is_that_of_the_model(folder):
    """Against a call written out here, from bytes drawn here."""
    model = nextreid.create_model(f"local-dir:{folder}").eval()

    def noise(part, count):
        drawn = hashlib.shake_256(f"nextreid golden {part} 0".encode()).digest(count)
        return torch.tensor(list(drawn), dtype=torch.float32) / 127.5 - 1

    height, width = model.img_size
    images = noise("images", 2 * 3 * 3 * height * width).view(2, 3, 3, height, width)
    text = noise("text", 2 * 3 * model.embed_dim).view(2, 3, -1)
    text = text / text.norm(dim=-1, keepdim=True)
    present = torch.tensor([[True, True, True], [True, True, False]])
    with torch.no_grad():
        expected = model(images, text, present).embedding
        caption = model.encode_text([[_golden.CAPTION] * 3])[0, 0]
    golden = load_file(folder / "golden.safetensors")
    torch.testing.assert_close(golden["embedding"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(golden["caption"], caption, rtol=1e-5, atol=1e-6)
    parts = golden["embedding"].view(2, -1, 3, model.embed_dim).abs().sum((1, 3))
    assert parts[1, 2] == 0 and (parts[0] > 0).all() and (parts[1, :2] > 0).all()


def test_the_input_is_held_by_its_digest():
    """This digest may not change with versions of anything: it is the meaning of the files out there."""
    model = small("next_tiny")
    given = golden_input(model)
    assert given.digest() != golden_input(model, seed=1).digest()
    assert hashlib.sha256(given.images.numpy().tobytes()).hexdigest() == PIXELS


def test_golden_files_stay_small(folder):
    """The input is drawn again, so that a large image size costs nothing."""
    assert (folder / "golden.safetensors").stat().st_size < 2**15
    tensors, recorded = read_tensors(folder / "golden.safetensors")
    assert set(tensors) == {"embedding", "caption"} and recorded["input_sha256"]


def test_every_weight_that_matters_shows_in_the_embedding(folder):
    """One changed tensor, with the hashes written again, is found by the embedding or the caption alone."""
    mapped = load_file(folder / "model.safetensors")  # older readers map the file, which is written over below
    state = {name: tensor.clone() for name, tensor in mapped.items()}
    for key, found in (
        ("image_tower.0.proj.weight", "golden embedding"),
        ("head.structure_experts.experts.fc1_weight", "golden embedding"),
        ("head.semantic_experts.modulation.", "golden embedding"),
        ("text_tower.transformer.text_projection", "golden caption"),
    ):
        key = next(k for k in state if k.startswith(key))
        save_file({**state, key: state[key].flip(0) * 1.5}, folder / "model.safetensors")
        sum_again(folder)
        assert list(failures(folder)) == [found], key


def test_a_change_of_the_image_size_shows_as_another_input(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["img_size"] = [16, 32]
    config["pretrained_cfg"]["input_size"] = [3, 16, 32]
    (folder / "config.json").write_text(json.dumps(config))
    sum_again(folder)
    assert "golden embedding" in failures(folder)


@pytest.mark.parametrize("name", ["config.json", "golden.safetensors", "model.safetensors"])
def test_an_altered_file_is_named_and_does_not_load(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)
    found = failures(folder)
    assert "differs" in found[name] and f"because of {name}" in found["golden embedding"]
    if name != "golden.safetensors":
        with pytest.raises(ValueError, match=f"{name} was truncated or altered"):
            nextreid.create_model(f"local-dir:{folder}")
    else:
        assert nextreid.create_model(f"local-dir:{folder}").num_classes == 4


def test_altered_weights_do_not_load_from_their_file_either(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(ValueError, match="truncated or altered"):
        small("next_tiny", num_classes=4, checkpoint_path=weights)


@pytest.mark.parametrize("name", ["golden.safetensors", "model.safetensors", "SHA256SUMS"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert failures(folder)[name] == "missing"


def test_a_folder_without_proof_loads_and_is_not_proven(tmp_path):
    folder = nextreid.save_model(small("baseline_tiny"), tmp_path / "old")
    assert nextreid.create_model(f"local-dir:{folder}").num_classes == 0
    found = failures(folder)
    assert found["SHA256SUMS"] == found["golden.safetensors"] == "missing"
    assert found["model.safetensors"] == "not listed in SHA256SUMS"
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        nextreid.verify_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a\\b"])
def test_hashes_of_files_elsewhere_are_rejected(folder, name):
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    assert "no file of this folder" in failures(folder)["SHA256SUMS"]
    with pytest.raises(ValueError, match="no file of this folder"):
        nextreid.create_model(f"local-dir:{folder}")


def test_hashes_are_in_the_form_that_sha256sum_reads(folder):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum on this machine")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == 3
    (folder / "SHA256SUMS").write_text("what is this\n")
    assert "line 1" in failures(folder)["SHA256SUMS"]


def test_a_full_disk_leaves_the_old_folder_whole(folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    model = small("next_tiny", num_classes=7)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))  # every write behind it fails, as on a full disk
    try:
        with pytest.raises(OSError, match="cannot write"):
            nextreid.save_pretrained(model, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_proof_that_fails_leaves_the_old_folder_whole(folder, monkeypatch):
    def broken(_):
        raise RuntimeError("no proof")

    monkeypatch.setattr(_publish, "write_golden", broken)
    with pytest.raises(RuntimeError, match="no proof"):
        nextreid.save_pretrained(small("next_tiny"), folder)
    assert not failures(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_place_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def reject(path, _):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(_disk, "open", reject, raising=False)  # root may write anywhere
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"cannot write .*model: .* may not be written"):
        nextreid.save_model(small("baseline_tiny"), tmp_path / "model")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read_is_named(folder):
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        nextreid.create_model(f"local-dir:{folder}")


def test_saving_again_forgets_the_proof_of_other_weights(folder):
    nextreid.save_model(fill(nextreid.create_model(f"local-dir:{folder}")), folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_keys_that_do_not_fit_are_named_and_grouped(folder):
    model = small("next_tiny", head={"num_structure_experts": 0})
    (folder / "config.json").unlink()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError) as rejected:
        nextreid.models.load_checkpoint(model, folder)
    assert "unexpected head.structure_experts.* (" in str(rejected.value) and len(str(rejected.value)) < 1000


def test_unknown_architectures_and_cameras_are_named(tmp_path):
    folder = nextreid.save_model(small("baseline_tiny", num_cameras=2), tmp_path / "m")
    for cameras in (0, 3):
        with pytest.raises(ValueError, match=f"trained with num_cameras=2, the model has num_cameras={cameras}"):
            nextreid.create_model(f"local-dir:{folder}", num_cameras=cameras)
    config = json.loads((folder / "config.json").read_text())
    odd = {**config, "model_args": {**config["model_args"], "cache_dir": "elsewhere"}}
    (folder / "config.json").write_text(json.dumps(odd))
    with pytest.raises(ValueError, match="model_args names cache_dir, which is no argument of a model"):
        nextreid.create_model(f"local-dir:{folder}")
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "baseline_tyni"}))
    with pytest.raises(ValueError, match="Did you mean 'baseline_tiny'"):
        nextreid.create_model(f"local-dir:{folder}")


def test_from_pretrained_takes_folders_and_rejects_riddles(folder):
    model = nextreid.from_pretrained(folder, num_classes=0)
    assert not model.training and model.num_classes == 0
    with pytest.raises(ValueError, match="has no revision 'v1'"):
        nextreid.from_pretrained(folder, revision="v1")
    for nothing in ("nowhere", "/no/where", "../where", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
            nextreid.from_pretrained(nothing)


def test_a_card_states_what_the_configuration_states_and_no_more(tmp_path):
    model = small("next_tiny", num_classes=2)
    bare = (nextreid.save_pretrained(model, tmp_path / "bare") / "README.md").read_text()
    assert "\nlicense" not in bare.split("---")[1] and "library_name: nextreid" in bare.split("---")[1]
    for row in ("| weights | not stated |", "| data | not stated |", "| code | Apache-2.0 |", "Measures: not stated."):
        assert row in bare
    for row in ("Protocol", "Seeds", "Epoch rule", "Dataset", "Base weights", "Recipe"):
        assert f"| {row} | not stated |" in bare
    model.pretrained_cfg = model.pretrained_cfg.replace(
        metrics={"mAP": 0.5125, "rank-1": 0.6},
        protocol="rgbnt201",
        license="CC-BY-4.0",
        data_license="of its | authors",
        base_weights="CLIP x, openai",
        trained_on={
            "dataset": "a", "seed": 0, "epoch": 3, "epochs": 5, "epoch_rule": "last", "start": {"dataset": "b"}
        },
    )  # fmt: skip
    told = (nextreid.save_pretrained(model, tmp_path / "told") / "README.md").read_text()
    assert "license: cc-by-4.0" in told.split("---")[1]
    for row in (
        "| mAP | 0.5125 |", "| rank-1 | 0.6 |", "| Protocol | rgbnt201 |", "| Seeds | 0 |", "| Epoch rule | last |",
        "| weights | CC-BY-4.0 |", "| data | of its \\| authors |", "| Base weights | CLIP x, openai |",
        "| Dataset | a |", "| Epoch | 3 of 5 |", "| Before it: Dataset | b |",
    ):  # fmt: skip
        assert row in told, row
    config = json.loads((tmp_path / "told" / "config.json").read_text())
    assert config["licenses"] == {"code": "Apache-2.0", "weights": "CC-BY-4.0", "data": "of its | authors"}
    assert model_card(config) == told
    again = nextreid.create_model(f"local-dir:{tmp_path / 'told'}").pretrained_cfg
    assert (again.license, again.base_weights, again.metrics) == ("CC-BY-4.0", "CLIP x, openai", config_metrics(config))


def config_metrics(config):
    return config["pretrained_cfg"]["metrics"]


def test_a_pointer_of_git_lfs_is_named_with_the_way_out(folder):
    for remove in ("", "SHA256SUMS"):
        (folder / remove).unlink() if remove else None
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of Git LFS.*git lfs pull"):
            nextreid.create_model(f"local-dir:{folder}")


def test_a_model_saved_twice_has_the_same_bytes(tmp_path):
    model = small("next_tiny", num_classes=3)
    saved = [nextreid.save_pretrained(model, tmp_path / name) for name in "ab"]
    for path in saved[0].iterdir():
        assert path.read_bytes() == (saved[1] / path.name).read_bytes(), path.name


def test_weights_of_other_programs_are_read_and_reported(tmp_path, caplog):
    model = small("baseline_tiny")
    save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    with caplog.at_level("INFO"):
        load_checkpoint(small("baseline_tiny"), tmp_path / "theirs.safetensors")
    assert caplog.text.count("theirs.safetensors has no digest") == 1


def test_a_folder_moved_aside_is_loaded_from_there(tmp_path):
    """As a kill between the two steps leaves it, where folders cannot change places in one."""
    folder = nextreid.save_model(small("baseline_tiny"), tmp_path / "last")
    folder.rename(tmp_path / ".last.old")
    assert nextreid.create_model(f"local-dir:{folder}").num_classes == 0
