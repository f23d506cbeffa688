"""``nextreid convert``."""

import json
import os

import open_clip
import pytest
import torch

from nextreid import create_model
from nextreid.cli import main

CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
ARGUMENTS = [
    'image_tower_args={"depth": 1, "embed_dim": 32, "num_heads": 2}',
    'text_tower={"width": 16, "heads": 2, "layers": 1}',
    "embed_dim=16",
    "img_size=[64, 32]",
]


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "nextreid-cli-clip.json"
    path.write_text(json.dumps(CLIP))
    open_clip.add_model_config(path)
    return open_clip.create_model(path.stem).state_dict()


def convert(source, out, *more):
    words = ["convert", source, "--model", "next_clip_b16", "--out", out, "--model-arg", *ARGUMENTS, *more]
    return main([str(word) for word in words])


def test_a_file_becomes_a_folder_and_what_was_mapped_is_said(state, tmp_path, capsys):
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}, tmp_path / "clip.pt")
    assert convert(tmp_path / "clip.pt", tmp_path / "out") == 0
    said = capsys.readouterr().out.splitlines()
    image = sum(name.startswith("visual.") for name in state)
    assert said == [
        "took 'state_dict', left epoch",
        "took 'module.' off every name",
        f"{image} tensors fill the image tower and {len(state) - image - 1} the text tower (OpenAI names)",
        "position table resampled from 2x2 to 4x2 patches",
        "left out: logit_scale",
        "the towers compute with QuickGELU; weights do not say which activation they need: QuickGELU for OpenAI's, "
        "GELU for most others (--model next with towers of plain names)",
        "untrained: head",
        str(tmp_path / "out"),
    ]
    model = create_model(f"local-dir:{tmp_path / 'out'}")
    assert torch.equal(model.image_tower[0].proj.weight, state["visual.proj"].T)
    assert convert(tmp_path / "clip.pt", tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert convert(tmp_path / "clip.pt", tmp_path / "out", "--overwrite") == 0


def test_what_is_wrong_is_one_line(state, tmp_path, capsys):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": dict(state), "args": Payload()}, tmp_path / "evil.pt")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    for name, named in (
        ("evil.pt", "holds more than tensors"),
        ("other.pt", "no weights of a CLIP vision transformer"),
        ("nowhere.pt", "no file"),
    ):
        assert convert(tmp_path / name, tmp_path / "out") == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("nextreid convert: ") and named in err and "\n" not in err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    assert convert(tmp_path / "other.pt", tmp_path / "out", "pretrained=True") == 2
    assert "'pretrained' is an option of its own" in capsys.readouterr().err


def test_any_network_of_timm_by_its_names_or_in_its_order(tmp_path, capsys):
    arguments = {"image_tower": "resnet10t", "image_tower_args": {"channels": [8, 8, 12, 16]}, "img_size": [64, 32]}
    source = create_model("baseline", **arguments).image_tower[0].trunk.state_dict()
    torch.save(
        {f"{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(source.items())}, tmp_path / "w.pt"
    )
    given = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    words = ["convert", tmp_path / "w.pt", "--model", "baseline", "--out", tmp_path / "out", "--model-arg", *given]
    assert main([*map(str, words), "--by-order"]) == 2 and "--by-order goes with --from timm" in capsys.readouterr().err
    assert main([*map(str, words), "--from", "timm"]) == 2 and "no place for" in capsys.readouterr().err
    assert main([*map(str, words), "--from", "timm", "--by-order"]) == 0
    assert "75 tensors fill the image tower" in capsys.readouterr().out
    back = create_model(f"local-dir:{tmp_path / 'out'}").image_tower[0].trunk.state_dict()
    assert all(torch.equal(value, source[key]) for key, value in back.items())
