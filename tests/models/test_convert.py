"""Third-party CLIP files: their names, their wrappers, and that none of them ever runs."""

import json
import os
import pickle
import zipfile

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import nextreid
from nextreid.models import convert_clip
from nextreid.models._convert import read_third_party

CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TOWER = {"depth": 2, "embed_dim": 64, "num_heads": 2}
MODEL = {
    "image_tower": "vit_base_patch16_clip_quickgelu_224",
    "image_tower_args": TOWER,
    "text_tower": {"width": 32, "heads": 2, "layers": 1},
    "embed_dim": 32,
    "img_size": [32, 32],
}
TEXTS = ["A man with a backpack.", "A white sedan."]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP of open_clip's."""
    path = tmp_path_factory.mktemp("clip") / "nextreid-convert-clip.json"
    path.write_text(json.dumps(CLIP))
    open_clip.add_model_config(path)
    torch.manual_seed(1)
    return open_clip.create_model(path.stem).eval()


@pytest.fixture
def state(clip):
    return dict(clip.state_dict())


def build(folder):
    return nextreid.create_model(f"local-dir:{folder}").eval()


def as_openai(state):
    """OpenAI's own file: half precision, and its settings as tensors."""
    settings = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    return {k: v.half() for k, v in state.items()} | {k: torch.tensor(v) for k, v in settings.items()}


def as_custom_text(state):
    beside = ("visual.", "logit_scale")
    return {k if k.startswith(beside) else f"text.{k}": v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "left_out", "exact"),
    [
        (dict, {"logit_scale"}, 1e-5),
        (as_openai, {"logit_scale", "input_resolution", "context_length", "vocab_size"}, 2e-2),
        (as_custom_text, {"logit_scale"}, 1e-5),
    ],
)
def test_a_converted_clip_gives_its_features(clip, state, tmp_path, change, left_out, exact):
    torch.save(change(state), tmp_path / "clip.pt")
    done = convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", **MODEL)
    model = build(tmp_path / "out")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = clip.encode_image(images)
        torch.testing.assert_close(model.image_tower[0](images)[0], expected, rtol=0, atol=exact)
        tokens = open_clip.tokenize(TEXTS)
        torch.testing.assert_close(model.text_tower(tokens), clip.encode_text(tokens), rtol=0, atol=exact)
    visual = [k for k in state if k.startswith("visual.")]
    assert done.mapping.image == len(visual) and done.mapping.text == len(state) - len(visual) - 1
    assert set(done.mapping.left_out) == left_out and done.mapping.grids is None
    assert done.activation == "QuickGELU"


def test_the_config_records_what_is_untrained(state, tmp_path):
    torch.save(state, tmp_path / "clip.pt")
    done = convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", **MODEL)
    assert done.untrained == ("head",)
    notes = build(tmp_path / "out").pretrained_cfg.notes
    assert "image and text tower" in notes and "clip.pt" in notes
    assert "untrained: head" in notes
    twice = convert_clip(tmp_path / "clip.pt", "next", tmp_path / "again", **MODEL).folder
    first, second = (load_file(folder / "model.safetensors") for folder in (done.folder, twice))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def timm_tower():
    torch.manual_seed(2)
    tower = timm.create_model("vit_base_patch16_clip_quickgelu_224", img_size=32, num_classes=32, **TOWER).eval()
    torch.nn.init.zeros_(tower.head.bias)  # as timm makes it of CLIP's projection
    return tower


def test_timms_names_fill_the_image_tower_alone(tmp_path):
    tower = timm_tower()
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")
    args = {k: v for k, v in MODEL.items() if k != "text_tower"}
    done = convert_clip(tmp_path / "tower.safetensors", "baseline_clip_b16", tmp_path / "out", **args)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(build(tmp_path / "out").image_tower[0](images)[0], tower(images))
    assert done.mapping == ("timm", len(tower.state_dict()) - 1, 0, ("head.bias",), None)
    assert done.untrained == () and "nothing else has weights" in build(tmp_path / "out").pretrained_cfg.notes
    with pytest.raises(ValueError, match=r"image tower alone.*text_tower=None"):
        convert_clip(tmp_path / "tower.safetensors", "next", tmp_path / "next", **MODEL)
    assert convert_clip(tmp_path / "tower.safetensors", "next", tmp_path / "next", **{**MODEL, "text_tower": None})


def test_a_timm_classifier_is_no_projection(tmp_path):
    tower = timm_tower()
    torch.nn.init.ones_(tower.head.bias)
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")
    args = {k: v for k, v in MODEL.items() if k != "text_tower"}
    with pytest.raises(ValueError, match=r"1 that the image tower has no place for: head\.bias"):
        convert_clip(tmp_path / "tower.safetensors", "baseline_clip_b16", tmp_path / "out", **args)


def test_open_clip_around_a_timm_tower(state, tmp_path):
    tower = timm_tower()
    own = {k.replace("head.weight", "head.proj.weight"): v for k, v in tower.state_dict().items() if k != "head.bias"}
    own = {f"visual.{k if k.startswith('head.') else f'trunk.{k}'}": v for k, v in own.items()}
    torch.save(own | {k: v for k, v in state.items() if not k.startswith("visual.")}, tmp_path / "clip.bin")
    convert_clip(tmp_path / "clip.bin", "next", tmp_path / "out", **MODEL)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(build(tmp_path / "out").image_tower[0](images)[0], tower(images))


def test_every_tower_of_a_model_is_filled(state, tmp_path):
    torch.save(state, tmp_path / "clip.pt")
    convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", **MODEL, share_image_tower=False, num_cameras=2)
    towers = build(tmp_path / "out").image_tower
    assert len(towers) == 3
    for tower in towers:
        assert torch.equal(tower.proj.weight, state["visual.proj"].T)


def test_positions_are_resampled_to_another_size_and_it_is_logged(state, tmp_path, caplog):
    torch.save(state, tmp_path / "clip.pt")
    with caplog.at_level("INFO"):
        done = convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", **{**MODEL, "img_size": [64, 32]})
    assert done.mapping.grids == ((2, 2), (4, 2))
    assert "position table resampled from 2x2 to 4x2 patches" in caplog.text
    grid = state["visual.positional_embedding"][1:].view(1, 2, 2, 64).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (4, 2), mode="bicubic", antialias=True)
    found = build(tmp_path / "out").image_tower[0].trunk.pos_embed
    torch.testing.assert_close(found[0, 1:], resized[0].permute(1, 2, 0).reshape(8, 64))
    assert torch.equal(found[0, 0], state["visual.positional_embedding"][0])


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda s: {"state_dict": s, "epoch": 3, "optimizer": {}}, ["took 'state_dict', left epoch, optimizer"]),
        (lambda s: {"model": {"state_dict": s}}, ["took 'model'", "took 'state_dict'"]),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, ["took 'module.' off every name"]),
        (
            lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
            ["took 'state_dict'", "took 'module.' off every name", "took '_orig_mod.' off every name"],
        ),
    ],
)
def test_wrappers_come_off_by_name(state, tmp_path, wrap, notes):
    torch.save(wrap(state), tmp_path / "clip.pth")
    found, said = read_third_party(tmp_path / "clip.pth")
    assert said == notes
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def without(*prefixes):
    return lambda s: {k: v for k, v in s.items() if not k.startswith(prefixes)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            without("visual.transformer.resblocks.1.", "ln_final."),
            r"12 missing for the image tower: trunk\.blocks\.1\.\* \(12\); "
            r"2 missing for the text tower: transformer\.\* \(2\)",
        ),
        (without("visual."), "no weights of a CLIP vision transformer"),
        (
            lambda s: {"vision_model.x": s["visual.proj"]},
            r"patch_embed\.proj\.weight \(timm\) is among vision_model\.x",
        ),
        (lambda s: s | {"prompt.a": s["visual.proj"], "prompt.b": s["visual.proj"]}, r"2 unknown: prompt\.\* \(2\)"),
        (
            lambda s: s | {"visual.transformer.resblocks.7.ln_1.weight": s["ln_final.weight"]},
            r"1 that the image tower has no place for: visual\.transformer\.resblocks\.7\.ln_1\.weight",
        ),
        (
            lambda s: s | {"text_projection": s["text_projection"][:, :5]},
            r"shapes of 1 differ: text_projection is \(32, 5\), the tower has \(32, 32\)",
        ),
        (lambda s: s | {"text.ln_final.weight": s["ln_final.weight"]}, r"1 unknown: text\.ln_final\.weight"),
        (
            lambda s: s | {"visual.positional_embedding": torch.zeros(129, 64)},
            "position table has 128 places besides the class token's, which is no square",
        ),
        (lambda s: s | {"visual.positional_embedding": torch.zeros(5, 8)}, "visual.positional_embedding is"),
        (lambda s: {}, "not tensors by name"),
        (lambda s: s["visual.proj"], "not tensors by name"),
        (lambda s: s | {"seen": 3}, r"1 entries that are no tensors by name: 'seen' is a int"),
        (lambda s: s | {3: s["visual.proj"]}, "no tensors by name"),
        (lambda s: s | {"visual.proj": s["visual.proj"].to_sparse()}, "a tensor of torch.sparse_coo"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(state, tmp_path, change, named):
    torch.save(change(state), tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=named):
        convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", **MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.pt"]


class Payload:
    """Runs a command in whoever unpickles it."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("wrap", [lambda p, s: p, lambda p, s: {"state_dict": s, "args": p}])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_malicious_pickle_never_runs(tmp_path, monkeypatch, write, wrap, suffix):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # even where the user has asked torch for less
    target, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
    write(wrap(Payload(target), {}), path)
    with pytest.raises(ValueError, match="holds more than tensors, which could run code"):
        read_third_party(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert target.exists()  # it was dangerous


def test_an_older_torch_is_rejected_before_a_pickle_is_opened(state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / "clip.pt")
    save_file(state, tmp_path / "clip.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(ValueError, match=r"torch 2\.9\.1\+cpu.*install torch 2\.10 or later.*\.safetensors"):
        read_third_party(tmp_path / "clip.pt")
    assert read_third_party(tmp_path / "clip.safetensors")[0].keys() == state.keys()


def test_a_torchscript_archive_is_rejected_unopened(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(Payload(tmp_path / "ran")))
        archive.writestr("archive/code/__torch__.py", "raise SystemExit")
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(tmp_path / "ran")))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(ValueError, match=r"TorchScript archive.*pretrained=True"):
        read_third_party(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_damaged_file_is_named(state, tmp_path, keep):
    torch.save(state, tmp_path / "clip.pt")
    data = (tmp_path / "clip.pt").read_bytes()
    (tmp_path / "clip.pt").write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"clip\.pt.* damaged"):
        read_third_party(tmp_path / "clip.pt")


def test_bad_places_are_named(state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.pt"):
        convert_clip(tmp_path / "nowhere.pt", "next", tmp_path / "out")
    (tmp_path / "clip.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.safetensors, \.pth, \.pt, \.bin"):
        convert_clip(tmp_path / "clip.pkl", "next", tmp_path / "out")
    with pytest.raises(ValueError, match="unknown model 'local-dir:x'"):
        convert_clip(tmp_path / "clip.pkl", "local-dir:x", tmp_path / "out")
    torch.save(state, tmp_path / "clip.pt")
    convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", **MODEL)
    with pytest.raises(FileExistsError, match="overwrite"):
        convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", **MODEL)
    convert_clip(tmp_path / "clip.pt", "next", tmp_path / "out", overwrite=True, **MODEL)


def test_averages_are_read_as_weights(tmp_path):
    """Of torch's AveragedModel, and of training tools that keep one beside the weights."""
    weights = {"visual.proj": torch.ones(2)}
    averaged = {"n_averaged": torch.tensor(7), **{f"module._orig_mod.{k}": v for k, v in weights.items()}}
    for name, value in {
        "a": averaged, "b": {"state_dict_ema": weights, "epoch": 3}, "c": {"model_ema": averaged}
    }.items():  # fmt: skip
        torch.save(value, tmp_path / f"{name}.pth")
        state, notes = read_third_party(tmp_path / f"{name}.pth")
        assert state.keys() == weights.keys() and notes


@pytest.mark.parametrize(
    "error", [MemoryError("no memory"), OverflowError("too large"), AssertionError(), RecursionError("deep")]
)
def test_however_a_reader_fails_the_file_is_named(tmp_path, monkeypatch, error):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match=r"a\.pth is damaged"):
        read_third_party(tmp_path / "a.pth")
