"""A checkpoint's config.json is judged before anything is built of it, and holds every argument of its model."""

import dataclasses
import inspect
import json

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from zoo import random_images, small

import nextreid
from nextreid.layers import NEXTHead
from nextreid.models import PretrainedCfg, load_checkpoint, load_config, save_model
from nextreid.models._config import PRETRAINED_CFG, check_config
from nextreid.models.baseline import Baseline

HOSTILE = (
    "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "file", "weights",
    "cache_dir", "url", "hf_hub_id", "custom_load", "features_only", "scriptable", "embed_layer", "block_fn", "device",
)  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_model(small("next_tiny", num_classes=2), tmp_path_factory.mktemp("config") / "m")


@pytest.fixture
def folder(original, tmp_path):
    """A checkpoint whose config.json a test may change: the weights are linked, not copied."""
    (tmp_path / "config.json").write_text((original / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(original / "model.safetensors")
    return tmp_path


@pytest.fixture
def nothing_built(monkeypatch):
    """Neither timm nor torch may be asked for anything."""

    def refuse(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(torch, "load", refuse)


def change(folder, path, value):
    config = inner = json.loads((folder / "config.json").read_text())
    *way, last = path.split(".")
    for name in way:
        inner = inner[name]
    inner[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def load(folder):
    return nextreid.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["image_tower_args", "text_tower", "head", ""])
def test_no_file_hands_a_dependency_more_than_the_shape_of_a_tower(folder, nothing_built, name, place):
    change(folder, ".".join(filter(None, ("model_args", place, name))), "evil.pth")
    with pytest.raises(ValueError, match=name):
        load(folder)


@pytest.mark.parametrize("name", ["image_tower_args", "text_tower"])
@pytest.mark.parametrize("model", ["next_tiny", "next"])
def test_no_user_does_either(nothing_built, name, model):
    with pytest.raises(ValueError, match=f"{name}: unknown .* 'checkpoint_path'"):
        nextreid.create_model(model, **{name: {"checkpoint_path": "evil.pth"}})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("architecture", 5),
        ("architecture", "../next_tiny"),
        ("architecture", None),
        ("surprise", 1),
        ("num_classes", -1),
        ("num_features", "many"),
        ("activations", ["GELU"]),
        ("model_args", []),
        ("model_args.modalities", 7),
        ("model_args.modalities", []),
        ("model_args.modalities", ["rgb", "rgb", "tir"]),
        ("model_args.modalities", ["../rgb"]),
        ("model_args.img_size", [None, None]),
        ("model_args.img_size", [10**6, 32]),
        ("model_args.image_tower", 5),
        ("model_args.image_tower", "hf-hub:timm/vit"),
        ("model_args.image_tower", "local-dir:evil"),
        ("model_args.image_tower_args", [1]),
        ("model_args.image_tower_args.patch_size", 0),
        ("model_args.image_tower_args.depth", 10**6),
        ("model_args.image_tower_args.act_layer", "os/path"),
        ("model_args.text_tower", "hf-hub:owner/name"),
        ("model_args.text_tower", 3),
        ("model_args.text_tower.width", 2.5),
        ("model_args.embed_dim", 10**9),
        ("model_args.num_cameras", 10**12),
        ("model_args.num_classes", 10**9),
        ("model_args.head.drop", "0.1"),
        ("model_args.head.num_semantic_experts", 10**6),
        ("model_args.head.mlp_ratio", 10**9),
        ("model_args.share_image_tower", "yes"),
        ("model_args.extra", "a/b"),
        ("pretrained_cfg.file", "evil.pth"),
        ("pretrained_cfg.hf_hub_id", "evil/evil"),
        ("pretrained_cfg.clip", ["ViT-B-16", "openai"]),
        ("pretrained_cfg.timm", True),
        ("pretrained_cfg.input_size", 3),
        ("pretrained_cfg.input_size", None),
        ("pretrained_cfg.modalities", 3),
        ("pretrained_cfg.std", [0, 0, 0]),
        ("pretrained_cfg.interpolation", "sharp"),
        ("pretrained_cfg.trained_on", {"recipe": "x"}),
        ("pretrained_cfg.trained_on", {"dataset": "a", "start": "b"}),
        ("pretrained_cfg.metrics", {"mAP": "high"}),
    ],
)
def test_what_does_not_fit_is_named(folder, nothing_built, path, value):
    change(folder, path, value)
    with pytest.raises(ValueError, match=path.rpartition(".")[2]):
        load(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"architecture": "a", "architecture": "b"}', '{"architecture": NaN}'])
def test_json_that_is_none_is_rejected(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        load(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("../evil"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_change_is_read_or_rejected_by_name(original, data):
    config = inner = json.loads((original / "config.json").read_text())
    while True:
        name = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[name], dict) or not inner[name] or data.draw(st.booleans()):
            break
        inner = inner[name]
    inner[name] = data.draw(json_values)
    try:
        check_config(config, "the config")
    except ValueError as error:
        assert str(error).startswith("the config")


def test_a_model_far_larger_than_its_weights_is_never_built(folder):
    for name, value in {"embed_dim": 8192, "depth": 128, "num_heads": 128}.items():
        change(folder, f"model_args.image_tower_args.{name}", value)
    with pytest.raises(ValueError, match=r"holds \d+ numbers, and the model of its arguments has \d{10,}"):
        load(folder)


def test_every_field_of_the_configuration_but_its_sources_is_in_the_schema():
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)}
    assert PRETRAINED_CFG.keys() == fields - {"hf_hub_id", "file", "clip", "timm"}


@pytest.mark.parametrize("name", ["baseline_tiny", "next_tiny", "unicat_tiny"])
def test_a_saved_model_keeps_every_argument_resolved(name, tmp_path):
    model = small(name)
    saved = load_config(save_model(model, tmp_path / "m"))["model_args"]
    assert saved.keys() == inspect.signature(type(model)).parameters.keys()
    assert saved == json.loads(json.dumps(model.model_args)) and None not in (saved.get("head", 0), saved["img_size"])
    if name == "next_tiny":
        assert saved["head"].keys() == inspect.signature(NEXTHead).parameters.keys() - {
            "dim", "num_modalities", "num_tokens", "in_dim"
        }  # fmt: skip
        assert saved["text_tower"]["quick_gelu"] is True and saved["text_tower"]["mlp_ratio"] == 4.0


def test_a_later_change_of_a_default_changes_nothing(tmp_path, monkeypatch):
    model = small("next_tiny").eval()
    folder = save_model(model, tmp_path / "m")
    defaults = NEXTHead.__init__.__defaults__
    monkeypatch.setattr(NEXTHead.__init__, "__defaults__", tuple("all" if d == "dynamic" else d for d in defaults))
    assert small("next_tiny").head.semantic_experts.sampling == "all"
    images = random_images(model)
    assert torch.equal(load(folder).eval()(images), model(images))


@pytest.mark.parametrize(
    ("change_of", "named"),
    [
        ({"head": {"sampling": "topk"}}, "head.sampling=dynamic, the model has head.sampling=topk"),
        ({"head": {"num_heads": 2}}, "head.num_heads=4"),
        ({"text_tower": {"width": 32, "heads": 2, "layers": 1, "quick_gelu": False}}, "text_tower.quick_gelu=True"),
        ({"image_tower": "vit_small_patch16_224"}, "image_tower=vit_tiny_patch16_224"),
        ({"image_tower_args": {"act_layer": "relu"}}, "activations of image_tower"),
        ({"share_image_tower": False}, "share_image_tower=True"),
    ],
)
def test_another_anything_is_rejected_by_name(tmp_path, change_of, named):
    arguments = {"text_tower": {"width": 32, "heads": 2, "layers": 1}}
    folder = save_model(nextreid.create_model("next_tiny", **arguments), tmp_path / "m")
    with pytest.raises(ValueError, match=rf"the weights of .* were trained with {named}"):
        nextreid.create_model(f"local-dir:{folder}", **change_of)


def test_what_counts_in_training_alone_may_differ(folder):
    model = nextreid.create_model(
        f"local-dir:{folder}", num_classes=5, drop_path=0.1, head={"drop": 0.3}, image_tower_args={"drop_rate": 0.1}
    )
    assert model.num_classes == 5 and model.model_args["head"]["drop"] == 0.3
    assert model.model_args["head"]["num_heads"] == 4 and model.model_args["image_tower_args"]["depth"] == 4


def test_another_activation_shows_where_no_argument_names_it(folder, monkeypatch):
    """As where a later timm builds another one under the same name."""
    model = small("next_tiny", num_classes=2)
    for block in model.image_tower[0].trunk.blocks:
        block.mlp.act = torch.nn.ReLU()
    with pytest.raises(
        ValueError, match=r"activations of image_tower=\['GELU'\], .* activations of image_tower=\['ReLU'\]"
    ):
        load_checkpoint(model, folder)


def test_numpy_numbers_and_one_modality_are_plain_in_the_file(tmp_path):
    model = nextreid.create_model(
        "baseline_tiny",
        num_classes=np.int64(3),
        img_size=np.array([32, 16]),
        modalities="rgb",
        drop_path=np.float32(0.0),
    )
    saved = load_config(save_model(model, tmp_path / "m"))["model_args"]
    assert (saved["num_classes"], saved["img_size"], saved["modalities"]) == (3, [32, 16], ["rgb"])
    assert load(tmp_path / "m").modalities == ("rgb",) == Baseline(modalities="rgb", image_tower="test_vit").modalities


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"img_sice": (64, 32)}, "baseline_tiny: unknown argument 'img_sice'. Did you mean 'img_size'.*Known: .*pool"),
        ({"img_size": "big"}, r"img_size must be \(height, width\) in pixels, .*; got 'big'"),
        ({"img_size": (64, 32.5)}, r"img_size must be .*; got \(64, 32\.5\)"),
        ({"num_classes": -1}, "num_classes must be a whole number of 0 to .*; got -1"),
        ({"num_cameras": 1.5}, "num_cameras must be a whole number"),
        ({"drop_path": 1.0}, "drop_path must be a number of 0 to 0.999; got 1.0"),
        ({"share_image_tower": 1}, "share_image_tower must be True or False; got 1"),
        ({"image_tower_args": {"dept": 3}}, "image_tower_args: unknown .* 'dept'. Did you mean 'depth'"),
        ({"image_tower_args": {"num_heads": 5}}, "does not build as a tower .*num_heads"),
        ({"pretrained_cfg_overlay": {"mean": 0.5}}, r"pretrained_cfg\.mean must be three numbers"),
        ({"pool": torch.nn.GELU}, "pool must be a name"),
    ],
)
def test_constructors_say_what_they_take(arguments, named):
    with pytest.raises(ValueError, match=named):
        nextreid.create_model("baseline_tiny", **arguments)


def test_a_name_that_is_none_is_rejected():
    with pytest.raises(ValueError, match="model_name must be a text"):
        nextreid.create_model(None)


def test_home_folders_are_found(original, tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(original.parent))
    expected = load_file(original / "model.safetensors")
    for model in (
        load("~/m"),
        nextreid.from_pretrained("~/m"),
        small("next_tiny", num_classes=2, checkpoint_path="~/m"),
    ):
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    save_model(model, "~/copy")
    assert (original.parent / "copy" / "config.json").is_file()
    assert not all(finding.ok for finding in nextreid.verify_checkpoint("local-dir:~/copy"))


def test_what_has_a_place_for_each_position_says_so_at_another_size(tmp_path):
    folder = save_model(nextreid.create_model("next_tiny", head={"sampling": "random"}), tmp_path / "m")
    with pytest.raises(ValueError, match=r"pattern is .*build it with img_size=\(64, 32\)"):
        nextreid.create_model(f"local-dir:{folder}", img_size=(128, 64))
