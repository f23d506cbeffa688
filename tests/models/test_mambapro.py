"""MambaPro: equal to its authors' code, in both of their configurations; what it does without a modality."""

import re

import pytest
import torch
from goldens import Golden, silence
from zoo import PRESENT, random_images, small

from nextreid.losses import Criterion
from nextreid.models import mambapro
from nextreid.models._authors import build_from_authors


@pytest.fixture(scope="module")
def golden():
    return Golden("mambapro-RGBNT201")


@pytest.fixture
def blocks(monkeypatch):
    """What every block of the tower gave, in order."""
    outputs, plain = [], mambapro.run_block
    monkeypatch.setattr(mambapro, "run_block", lambda *args: outputs.append(plain(*args)) or outputs[-1])
    return outputs


@pytest.mark.slow
@torch.no_grad()
def test_the_authors_features(golden, blocks):
    model = golden.model("mambapro").eval()
    seen = {}
    for i, block in enumerate(model.aggregation.blocks):
        for scan, layer in block.items():
            layer.register_forward_hook(lambda *args, name=f"block{i}_{scan}_mean": seen.update({name: args[2]}))
    space = model.aggregation.blocks[0].intra.state_space
    space.register_forward_hook(lambda _, inputs, output: seen.update(scan_in=inputs[0], scan_out=output))
    found = model.forward_features(golden.images(), None, None, golden.camid)
    golden.close("scan0_rgb_in_mean", seen.pop("scan_in")[:, 0].mean(1))
    golden.close("scan0_rgb_out_last", seen.pop("scan_out")[:, 0, -1])
    golden.close("embedding", model.pool(found))
    golden.close("cls", found["cls"])
    golden.close("tokens_mean", found["tokens"].mean(2))
    golden.close("last_token", found["tokens"][:, :, -1])
    for name, tokens in seen.items():
        golden.close(name, tokens.mean(2))
    for i in (0, 11):
        golden.close(f"prompts_block{i}", blocks[i][:, -12:].mean(1).unflatten(0, (2, 3)))


@pytest.mark.slow
@torch.no_grad()
def test_the_authors_training(golden):
    model = silence(golden.model("mambapro")).train()
    out = model(golden.images("training"), camid=golden.training_camid)
    for i, head in enumerate(out.heads):
        golden.close(f"train.{2 * i}", head.logits, 1e-4)
        golden.close(f"train.{2 * i + 1}", head.feature, 1e-4)
        golden.close(f"train.term{i}", Criterion()([head], golden.training_pid)["total"], 1e-4)
    golden.close("train.loss", Criterion()(out.heads, golden.training_pid)["total"], 1e-4)


def test_a_vehicle_file_fills_the_vehicle_model(golden):
    """A file holds the heads of both configurations; here with a tower of two blocks."""
    shapes = {k: v for k, v in golden.facts["keys"].items() if not re.search(r"resblocks\.([2-9]|1\d)\.", k)}
    state = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (dtype, shape) in shapes.items()}
    golden.fill.fill(state, 1)
    model, found, notes = build_from_authors("mambapro_vehicle", state, image_tower_args={"depth": 2})
    assert (model.img_size, model.classifier) == ((128, 256), "modality")
    assert found == {"num_classes": 171, "num_cameras": 4, "num_prompts": 4, "step_init": "uniform"}
    assert torch.equal(model.necks[0].classifier.weight, state["BACKBONE.classifier.weight"])
    assert torch.equal(model.necks[1].norm.weight, state["bottleneck_fuse.weight"])
    block = "BACKBONE.base.transformer.resblocks.1."
    assert torch.equal(model.prompts.down_weight[1, 2], state[f"{block}adapter_t.0.weight"].T)
    assert torch.equal(model.prompts.transfers[1].up.weight, state[f"{block}adapter_transfer.3.weight"])
    assert len(notes) == 2 and "4 tensors: an adapter of what comes from before the first block" in notes[0]
    del state["AAM.ma_block.1.SSM_intra.SSM_t_f.A_log"]
    with pytest.raises(ValueError, match=r"blocks\.1\.intra\.state_space\.A_log"):
        build_from_authors("mambapro_vehicle", state, image_tower_args={"depth": 2})


def test_the_tower_stays_as_it_is_but_for_cameras():
    model = small("mambapro_clip_b16", num_cameras=2, num_classes=3)
    roles = model.param_groups()
    assert set(roles["tower"]) == {"image_tower.0.camera"}
    assert {name.split(".")[0] for name in roles["adapters"]} == {"prompts", "adapters"}
    assert {name.split(".")[0] for name in roles["new"]} == {"aggregation", "necks"}
    assert "image_tower.0.trunk.blocks.0.attn.qkv.weight" in small("mambapro_tiny").param_groups()["tower"]


def test_class_tokens_may_have_a_classifier_for_all():
    model = small("mambapro_tiny", num_classes=3, classifier="modality").eval()
    out = model(random_images(model), present=PRESENT)
    assert len(model.necks) == 2 and torch.equal(out.heads[-1].feature, out.embedding)
    for m, head in enumerate(out.heads[:-1]):
        assert torch.equal(head.feature, out.features["cls"][:, m]) and torch.equal(head.present, PRESENT[:, m])
        torch.testing.assert_close(head.logits, model.necks[0](head.feature))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"classifier": "expert"}, "classifier must be one of joint, modality"),
        ({"image_tower": "resnet10t", "image_tower_args": {}}, "plain vision transformer"),
        ({"step_init": "zero"}, "unknown step_init 'zero'"),
        ({"num_prompts": 0}, "num_prompts"),
    ],
)
def test_settings_that_do_not_exist_are_rejected(setting, message):
    with pytest.raises(ValueError, match=message):
        small("mambapro_tiny", **setting)
