"""NEXT's settings: every ablation of the paper is an argument, and each does what its name says."""

import inspect

import pytest
import torch
from zoo import CAPTIONS, PRESENT, random_images, small

import nextreid
from nextreid.layers import NEXTHead

NONE = {"num_semantic_experts": 0, "num_structure_experts": 0}
TABLES = {
    "3A": {"head": {**NONE, "aggregation": "concat"}},
    "3B": {"head": NONE},
    "3C": {"head": {"num_structure_experts": 0}},
    "4A": {"head": {"structure_routing": "specific"}},
    "4B": {"head": {"semantic_routing": "shared", "structure_routing": "specific"}},
    "4C": {"head": {"semantic_routing": "shared"}},
    "8A": {"head": {"sampling": "all"}},
    "8B": {"head": {"sampling": "topk"}},
    "8C": {"head": {"sampling": "fixed"}},
    "fig4": {"head": {"num_semantic_experts": 8, "num_structure_experts": 1}},
    "each": {"head": {"structure_output": "each"}},
    "sample": {"head": {"structure_granularity": "sample"}},
    "map": {"head": {"modulation_scope": "map"}},
    "drop": {"head": {"masked_tokens": "drop"}},
    "mean": {"head": {"aggregation": "mean"}},
    "residual": {"head": {"mmfa_residual": True}},
    "no modulation": {"head": {"text_modulation": False}},
    "classifiers": {"classifier": "expert"},
    "no text": {"text_tower": None},
}
GROUPS = {"3A": 1, "3B": 1, "3C": 3, "fig4": 9, "each": 6}


@pytest.mark.parametrize("row", TABLES)
def test_each_ablation_is_an_argument(row):
    model = small("next_tiny", num_classes=5, **TABLES[row])
    out = model(random_images(model), CAPTIONS if model.text_tower else None, PRESENT)
    groups = GROUPS.get(row, 4)
    assert out.embedding.shape == (3, groups * 3 * 64) == (3, model.num_features)
    assert len(out.heads) == (groups if row == "classifiers" else 1)
    assert torch.equal(torch.cat([head.feature for head in out.heads], dim=1), out.embedding)
    (sum(head.logits.square().sum() for head in out.heads) + out.embedding.square().sum()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_row_a_is_the_baseline():
    a = small("next_tiny", **TABLES["3A"]).eval()
    baseline = small("baseline_tiny").eval()
    assert a.state_dict().keys() == baseline.state_dict().keys()
    baseline.load_state_dict(a.state_dict())
    assert torch.equal(a(random_images(a), None, PRESENT), baseline(random_images(a), None, PRESENT))


def test_captions_change_the_embedding_only_where_they_are():
    model = small("next_tiny").eval()
    images = random_images(model)
    plain, captioned = model(images), model(images, CAPTIONS)
    assert torch.equal(plain[1], captioned[1])
    assert not torch.equal(plain[0], captioned[0]) or not torch.equal(plain[2], captioned[2])
    scores = model.forward_features(images, CAPTIONS)["gamma"], model.forward_features(images)["gamma"]
    assert not torch.equal(scores[0][0], scores[1][0]) and torch.equal(scores[0][1], scores[1][1])


def test_three_spellings_of_captions_agree():
    model = small("next_tiny").eval()
    images = random_images(model)
    features = model.encode_text(CAPTIONS)
    assert features.shape == (3, 3, 64) and not features[1].any() and not features[0, 1].any()
    expected = model(images, CAPTIONS)
    assert torch.equal(model(images, features), expected)
    assert torch.equal(model(images, features[:, None].expand(-1, 3, -1, -1)), expected)


def test_a_shared_tower_is_stored_once_and_separate_towers_differ():
    shared, separate = small("next_tiny"), small("next_tiny", share_image_tower=False)
    one = sum(p.numel() for p in shared.image_tower.parameters())
    assert sum(p.numel() for p in separate.image_tower.parameters()) == 3 * one
    images = random_images(separate)
    images[:, 1] = images[:, 0]
    cls = separate.encode_images(images)["cls"]
    assert not torch.allclose(cls[:, 0], cls[:, 1])
    cls = shared.encode_images(images)["cls"]
    torch.testing.assert_close(cls[:, 0], cls[:, 1])


def test_modality_order_is_part_of_the_model():
    """Semantic routers belong to a modality (Table 4), so swapping two changes the masks."""
    model = small("next_tiny").eval()
    images = random_images(model)
    swapped = model.forward_features(images[:, [1, 0, 2]])["gamma"]
    assert not torch.allclose(swapped[:, :, [1, 0, 2]], model.forward_features(images)["gamma"])
    shared = small("next_tiny", head={"semantic_routing": "shared"}).eval()
    swapped = shared.forward_features(images[:, [1, 0, 2]])["gamma"]
    torch.testing.assert_close(swapped[:, :, [1, 0, 2]], shared.forward_features(images)["gamma"])


def test_text_tower_is_built_only_where_text_is_read():
    unrouted = small("next_tiny", head={"sampling": "all"})
    assert unrouted.text_tower is None and not unrouted.uses_text
    assert small("next_tiny").uses_text and small("next_tiny").text_tower is not None
    features = torch.randn(3, 3, 64)
    model = small("next_tiny", text_tower=None, head={"text_modulation": True}).eval()
    images = random_images(model)
    with_features, without = model.forward_features(images, features), model.forward_features(images)
    assert not torch.equal(with_features["gamma"], without["gamma"])
    with pytest.raises(ValueError, match="without a text tower"):
        model(images, CAPTIONS)


def test_head_settings_are_those_of_the_head(monkeypatch):
    given = {
        **{"num_semantic_experts": 2, "num_structure_experts": 1, "mlp_ratio": 1.0, "drop": 0.3, "sampling": "random"},
        **{"semantic_routing": "shared", "sampling_threshold": 0.2, "sampling_keep_ratio": 0.7},
        **{"modulation_scope": "map", "text_modulation": False, "masked_tokens": "drop", "aggregation": "mean"},
        **{"structure_routing": "specific", "structure_granularity": "sample", "structure_output": "each"},
        **{"num_heads": 2, "ffn_ratio": 3.0, "mmfa_residual": True, "modulation_contrast": True},
    }
    taken = []

    class Spy(NEXTHead):
        def __init__(self, *args, **settings):
            taken.append((args, settings))
            super().__init__(*args, **settings)

    monkeypatch.setattr("nextreid.models.next.NEXTHead", Spy)
    model = nextreid.create_model("next_tiny", modalities=("rgb", "tir"), classifier="expert", head=given)
    assert taken == [((64, 2, 32), given)]
    given_by_the_model = {"dim", "num_modalities", "num_tokens", "in_dim"}
    assert given.keys() == inspect.signature(NEXTHead).parameters.keys() - given_by_the_model
    assert (model.num_groups, model.num_features, model.head.num_semantic_experts) == (3, 3 * 2 * 64, 2)


def test_training_captions_are_drawn_for_each_expert():
    model = small("next_tiny", head={"num_semantic_experts": 2})
    drawn = []

    def sample(row, modality, draw):
        drawn.append((row, modality, draw))
        return (f"sentence {row} {modality} {draw}",)

    text = model.prepare_text(CAPTIONS, sample)
    assert text.shape == (3, 2, 3, 64) and sorted(drawn) == [
        (r, m, e) for r in range(3) for m in range(3) for e in (0, 1)
    ]
    torch.testing.assert_close(text[1, 1, 2], model.encode_text([[["sentence 1 2 1"]] * 3])[0, 0])


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"head": {"aggregation": "sum"}}, "attention, mean, concat"),
        ({"head": {"aggregation": "concat"}}, "num_semantic_experts=0"),
        ({"classifier": "both"}, "joint, expert"),
        ({"head": {"masked_tokens": "keep"}}, "zero, drop"),
        ({"modalities": ()}, "one or more distinct"),
        ({"modalities": ("rgb", "rgb")}, "one or more distinct"),
        ({"img_size": (64,)}, "height, width"),
        ({"img_size": (60, 32)}, "multiple of"),
        ({"head": {"num_heads": 5}}, "num_heads=5"),
        ({"head": {"expert_count": 3}}, "expert_count"),
        ({"expert_count": 3}, "expert_count"),
    ],
)
def test_bad_settings_are_named(kwargs, named):
    with pytest.raises(ValueError, match=named):
        small("next_tiny", **kwargs)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda x: x[:, :2], "M = 3 modalities"),
        (lambda x: x[0], "expected .B, M, 3, H, W."),
        (lambda x: x.transpose(-1, -2), r"16x32 \(HxW\), this model takes 32x16"),
        (lambda x: x.to(torch.uint8), "normalised floats"),
    ],
)
def test_bad_images_are_named(change, named):
    model = small("next_tiny")
    with pytest.raises(ValueError, match=named):
        model(change(random_images(model)))


def test_bad_presence_and_captions_are_named():
    model = small("next_tiny")
    images = random_images(model)
    with pytest.raises(ValueError, match="present is"):
        model(images, present=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="present is"):
        model(images, present=torch.ones(3, 3))
    with pytest.raises(ValueError, match="captions row 0 has 1 entries"):
        model(images, [["only one"]] * 3)
    with pytest.raises(ValueError, match="captions for 2 samples"):
        model(images, CAPTIONS[:2])
    with pytest.raises(ValueError, match="caption features have shape"):
        model(images, torch.randn(3, 3, 16))


@pytest.mark.parametrize("name", ["topreid_tiny", "demo_tiny"])
def test_experts_stand_behind_the_towers_of_another_method(name):
    torch.manual_seed(0)
    other = nextreid.create_model(name, num_cameras=4).eval()
    head = {"mlp_ratio": 1.0, "ffn_ratio": 1.0, "num_heads": 2}
    model = nextreid.create_model("next", image_tower=name, num_cameras=4, head=head).eval()
    assert model.text_tower is None and model.img_size == other.img_size
    model.image_tower.load_state_dict(other.image_tower.state_dict())
    images, camid = random_images(other), torch.tensor([0, 3, -1])
    ours, theirs = model.encode_images(images, camid=camid), other.image_tower(images, camid=camid)
    assert torch.equal(ours["cls"], theirs[0]) and torch.equal(ours["tokens"], theirs[1])
    assert model(images, camid=camid).shape == (3, model.num_features)
    assert model.model_args["image_tower"] == other.model_args["image_tower"]  # a checkpoint needs no other model


def test_a_clip_method_brings_its_text_tower():
    with torch.device("meta"):
        model = nextreid.create_model("next", image_tower="demo_clip_b16_vehicle")
    assert model.img_size == (128, 256) and model.model_args["text_tower"] == "ViT-B-16-quickgelu"
    assert model.pretrained_cfg.clip == ("ViT-B-16-quickgelu", "openai")
