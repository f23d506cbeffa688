"""DeMo: equal to its authors' code, and to what its paper says of missing modalities."""

import re

import pytest
import torch
from goldens import Golden, silence
from zoo import PRESENT, random_images, small

from nextreid.losses import Criterion
from nextreid.models._authors import build_from_authors


@pytest.fixture(scope="module")
def golden():
    return Golden("demo-RGBNT201")


@pytest.mark.slow
@torch.no_grad()
def test_the_authors_features(golden):
    model = golden.model("demo").eval()
    images = golden.images()
    found = model.forward_features(images, None, None, golden.camid)
    golden.close("embedding", model.pool(found))
    for name, ours in {
        "cls": found["cls"],
        "tokens_mean": found["tokens"].mean(2),
        "last_token": found["tokens"][:, :, -1],
        "hdm": found["decoupled"],
        "gates": found["gates"],
        "ori": found["ori"],
        "moe": found["moe"],
    }.items():
        golden.close(name, ours)
    model.missing = "zeros"
    for name, present in {"n": [True, False, True], "rt": [False, True, False]}.items():
        golden.close(
            f"embedding_missing_{name}", model(images, None, torch.tensor([present] * 2), golden.camid).embedding
        )


@pytest.mark.slow
@torch.no_grad()
def test_the_authors_training(golden):
    model = silence(golden.model("demo")).train()
    out = model(golden.images("training"), camid=golden.training_camid)
    for i, head in enumerate(out.heads):
        golden.close(f"train.{2 * i}", head.logits, 1e-4)
        golden.close(f"train.{2 * i + 1}", head.feature, 1e-4)
        golden.close(f"train.term{i}", Criterion()([head], golden.training_pid)["total"], 1e-4)
    golden.close("train.loss", Criterion()(out.heads, golden.training_pid)["total"], 1e-4)


def vehicle(golden):
    """The authors' names and shapes for a vehicle model, with a tower of one block."""
    shapes = {}
    for key, (dtype, shape) in golden.facts["keys"].items():
        if key.startswith(("bottleneck.", "classifier.")):
            widths = [512 if size == 1536 else size for size in shape]
            shapes |= {key.replace(".", f"_{name}.", 1): (dtype, widths) for name in "rnt"}
        elif match := re.match(r"(.*experts\.)(\d)(\.expertHead.*)", key):
            half = [size // 2 for size in shape]
            shapes |= {f"{match[1]}{int(match[2]) + more}{match[3]}": (dtype, half) for more in (0, 4)}
        elif not re.search(r"resblocks\.(?!0\.)", key):
            shapes[key] = dtype, shape
    state = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (dtype, shape) in shapes.items()}
    golden.fill.fill(state, 1)
    return state


def test_a_vehicle_file_fills_the_vehicle_model(golden):
    state = vehicle(golden)
    assert len(state) == 625 - 11 * 12
    model, found, _ = build_from_authors("demo", state, "demo_clip_b16_vehicle", image_tower_args={"depth": 1})
    assert found == {"num_classes": 171, "num_cameras": 4, "expert_heads": 8, "classifier": "modality"}
    assert torch.equal(model.experts.weight[5, 6], state["generalFusion.moe.experts.6.expertHead.5.mlp.0.weight"])
    assert torch.equal(model.necks[3].classifier.weight, state["classifier_t.weight"])
    assert torch.equal(model.decoupling.v_weight[4], state["generalFusion.rt.in_proj_weight"][1024:])
    del state["generalFusion.moe.experts.6.expertHead.5.mlp.0.weight"]
    with pytest.raises(ValueError, match=r"experts\.weight"):
        build_from_authors("demo", state, "demo_clip_b16_vehicle", image_tower_args={"depth": 1})


def test_absent_modalities_are_left_out_or_images_of_zeros():
    model = small("demo_tiny", num_cameras=2, num_classes=3).eval()
    images, camid = random_images(model), torch.tensor([0, 1, -1])
    out = model(images, None, PRESENT, camid)
    subsets = (model.decoupling.members & PRESENT[:, None]).any(-1)
    for part in ("decoupled", "gates"):
        found = out.features[part] if part == "decoupled" else out.features[part].mT
        assert torch.equal(found.abs().sum(-1) > 0, subsets)
    assert torch.equal(out.features["reduced"].abs().sum(-1) > 0, PRESENT)
    model.missing = "zeros"
    blank = images.masked_fill(~PRESENT[..., None, None, None], 0)
    expected = model(blank, None, None, camid).embedding
    torch.testing.assert_close(model(images, None, PRESENT, camid).embedding, expected)
    encoded = model.encode_images(images, None, camid)
    torch.testing.assert_close(model.pool(model.forward_tokens(encoded, None, PRESENT)), expected)


def test_each_modality_may_have_a_classifier():
    model = small("demo_tiny", num_classes=3, classifier="modality").eval()
    out = model(random_images(model), present=PRESENT)
    reduced = out.features["reduced"]
    assert torch.equal(out.heads[0].feature, out.features["moe"])
    for m, head in enumerate(out.heads[1:]):
        assert torch.equal(head.feature, reduced[:, m]) and torch.equal(head.present, PRESENT[:, m])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"classifier": "expert"}, "unknown classifier 'expert'; allowed: joint, modality"),
        ({"missing": "guess"}, "unknown missing 'guess'; allowed: leave_out, zeros"),
        ({"expert_heads": 5}, "num_heads=5"),
        ({"modalities": list("abcdefg")}, "1 to 6 modalities, got 7"),
    ],
)
def test_settings_that_do_not_exist_are_rejected(setting, message):
    with pytest.raises(ValueError, match=message):
        small("demo_tiny", **setting)
