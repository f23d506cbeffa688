"""Name maps of authors' checkpoints: strict both ways, on a method made up for it."""

import pytest
import torch

from nextreid import create_model
from nextreid.models import _authors, convert_authors
from nextreid.models._authors import Authors, Rule, build_from_authors, clip_tower_rules, neck_rules, rename

TINY = {
    "image_tower_args": {"depth": 2, "embed_dim": 32, "num_heads": 2},
    "embed_dim": 16,
    "img_size": (32, 16),
}
MADE_UP = Authors(
    title="MadeUp",
    repository="nobody/made-up",
    license="MIT",
    model="baseline_clip_b16",
    rules=[
        *clip_tower_rules("BACKBONE.base."),
        *neck_rules("bottleneck", "classifier", "necks.0"),
        Rule(r"BACKBONE\.cv_embed", "image_tower.0.camera", "reshape"),
    ],
    arguments=lambda state: {
        "num_classes": len(state["classifier.weight"]),
        "num_cameras": len(state["BACKBONE.cv_embed"]),
    },
    dropped={r"BACKBONE\.logit_scale": "the temperature of CLIP's loss"},
)


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setattr(_authors, "_AUTHORS", {**_authors._AUTHORS, "madeup": MADE_UP})


@pytest.fixture
def source():
    """A model of ours, and its state under the authors' names."""
    torch.manual_seed(3)
    model = create_model("baseline_clip_b16", num_classes=5, num_cameras=2, **TINY).eval()
    names = {
        "trunk.cls_token": "class_embedding",
        "trunk.pos_embed": "positional_embedding",
        "trunk.patch_embed.proj.": "conv1.",
        "trunk.norm_pre.": "ln_pre.",
        "trunk.norm.": "ln_post.",
        "trunk.blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".attn.qkv.": ".attn.in_proj_",
        ".attn.proj.": ".attn.out_proj.",
        ".fc1.": ".c_fc.",
        ".fc2.": ".c_proj.",
        "proj.weight": "proj",
    }
    state = {"BACKBONE.logit_scale": torch.tensor(4.6)}
    for key, value in model.state_dict().items():
        if key == "image_tower.0.camera":
            state["BACKBONE.cv_embed"] = value[:, None].clone()
        elif key.startswith("image_tower.0."):
            name = key.removeprefix("image_tower.0.")
            if name == "proj.weight":
                state["BACKBONE.base.proj"] = value.T.clone()
                continue
            for ours, theirs in list(names.items())[:-1]:
                name = name.replace(ours, theirs)
            state[f"BACKBONE.base.{name}"] = value.squeeze(0).squeeze(0) if value.dim() == 3 else value.clone()
        elif ".norm." in key:
            state[key.replace("necks.0.norm", "bottleneck")] = value.clone()
        else:
            state["classifier.weight"] = value.clone()
    return model, state


def test_a_file_fills_the_model_to_the_bit(source, tmp_path):
    model, state = source
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "made-up.pth")
    done = convert_authors("madeup", tmp_path / "made-up.pth", tmp_path / "out", **TINY)
    assert done.arguments == {"num_classes": 5, "num_cameras": 2}
    assert done.filled == len(state) - 1
    assert done.notes == ("took 'module.' off every name", "dropped 1 tensors: the temperature of CLIP's loss")
    read = create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert read.pretrained_cfg.interpolation == "bilinear"
    assert "nobody/made-up" in read.pretrained_cfg.notes
    images, camid = torch.rand(2, 3, 3, 32, 16), torch.tensor([1, 0])
    ours, theirs = read(images, camid=camid), model(images, camid=camid)
    assert torch.equal(ours.embedding if hasattr(ours, "embedding") else ours, theirs.embedding)


def test_without_classes_the_heads_stay_behind(source):
    model, state = source
    bare, _, _ = build_from_authors("madeup", state, **TINY, num_classes=0)
    images = torch.rand(1, 3, 3, 32, 16)
    assert torch.equal(bare.eval()(images), model(images).embedding)


def _without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "AAM.linear": torch.ones(1)}, r"no checkpoint of MadeUp: 1 tensors have no place.*AAM.linear"),
        (lambda s: _without(s, "BACKBONE.base.ln_post.bias"), r"1 are left: image_tower.0.trunk.norm.bias"),
        (lambda s: _without(s, "classifier.weight"), r"no checkpoint of MadeUp: it has no 'classifier.weight'"),
        (lambda s: {**s, "bottleneck.weight": torch.ones(7)}, r"bottleneck.weight is \(7,\), the model has \(48,\)"),
        (
            lambda s: {**s, "BACKBONE.base.positional_embedding": torch.ones(129, 32)},
            r"positional_embedding is \(129, 32\), the model has \(1, 3, 32\).*size",
        ),
    ],
)
def test_what_does_not_fit_is_named(source, change, message):
    _, state = source
    with pytest.raises(ValueError, match=message):
        build_from_authors("madeup", change(state), **TINY)


def test_another_methods_file_is_recognised(source, monkeypatch):
    other = {"only": torch.ones(2)}
    only = Authors("Only", "nobody/only", "", "baseline_tiny", [Rule("only", "x")], lambda state: {})
    monkeypatch.setitem(_authors._AUTHORS, "only", only)
    with pytest.raises(ValueError, match=r"names are those of Only \(--from only\)"):
        build_from_authors("madeup", other, **TINY)


def test_stacked_shared_and_divided_parameters():
    wanted = {"stack": torch.zeros(2, 2, 3), "q": torch.zeros(2), "k": torch.zeros(2)}
    rules = [Rule(r"e\.(\d)\.(\d)", r"stack[\2,\1]"), Rule("qk.*", ("q", "k"))]
    authors = Authors("A", "a/a", "", "baseline_tiny", rules, lambda state: {})
    state = {f"e.{i}.{j}": torch.full((3,), 10.0 * i + j) for i in range(2) for j in range(2)}
    state |= {"qk": torch.arange(4.0), "qk_again": torch.arange(4.0)}
    filled = rename(authors, state, wanted)
    assert filled["stack"][:, :, 0].tolist() == [[0.0, 10.0], [1.0, 11.0]]
    assert (filled["q"].tolist(), filled["k"].tolist()) == ([0.0, 1.0], [2.0, 3.0])
    with pytest.raises(ValueError, match=r"qk and qk_again are one parameter"):
        rename(authors, {**state, "qk_again": torch.ones(4)}, wanted)
    with pytest.raises(ValueError, match="1 are left: stack"):
        rename(authors, _without(state, "e.1.0"), wanted)
    assert not wanted["stack"].any()


def test_unknown_methods_propose_near_ones(tmp_path):
    with pytest.raises(KeyError, match="Did you mean 'madeup'"):
        convert_authors("made_up", tmp_path / "x.pth", tmp_path / "out")
