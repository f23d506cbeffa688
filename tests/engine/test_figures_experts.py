"""What a model looks at, by what its features and towers have: values of each view, captions compared, mistakes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nextreid.data import SampleDataset, collate
from nextreid.engine.embedding import eval_transform
from nextreid.engine.figures import expert_masks, experts
from nextreid.layers import NEXTHead
from nextreid.models import adapt
from nextreid.viz import Panel


@pytest.fixture
def drawn(monkeypatch):
    """Columns by group and title, and the panels, that are given to the drawing."""
    found = {}

    def record(samples, columns, modalities, *, panels=(), **rest):
        found.clear()
        found.update({(column.group, column.title): column for column in columns}, samples=samples)
        found.update({panel.title: panel for panel in panels})

    monkeypatch.setattr(experts, "expert_image", record)
    return found


def features(model, samples, text=True):
    source = SampleDataset(samples, eval_transform(model), model.modalities)
    batch = collate([source[i] for i in range(len(samples))])
    with torch.no_grad():
        captions = batch.captions if text and model.uses_text else None
        return model.eval().forward_features(batch.images, captions, batch.present, batch.camid)


def test_experts_of_next_with_captions_and_without(build, dataset, drawn):
    model, samples = build().train(), dataset.query[:5]  # more than one batch
    expert_masks(model, dataset, samples, compare_text=True)
    assert model.training
    grid = model.image_tower.grid_size
    for word, text in (("with", True), ("without", False)):
        mask = features(model, samples, text)["mask"].unflatten(-1, grid)
        for e in range(3):
            column = drawn[f"sampled, {word} captions", str(e + 1)]
            assert column.form == "kept" and np.array_equal(column.values, mask[:, e].numpy())
    weights = features(model, samples)["weights"]  # (B, M*N, E), which captions do not change
    column = drawn["structure weights", "2"]
    assert column.form == "heat" and column.values.shape == (5, 3, *grid)
    np.testing.assert_allclose(column.values[4, 2].ravel(), weights[4, -grid[0] * grid[1] :, 1], atol=1e-6)
    assert len([key for key in drawn if key[0] == "structure weights"]) == 3 and len(drawn) == 3 * 3 + 1
    expert_masks(model, dataset, samples[:1], views=["gamma"], text=False)
    assert {key[0] for key in drawn if isinstance(key, tuple)} == {"gamma"}
    assert not drawn["samples"][0].captions


def test_editor_shows_its_selection(build, dataset, drawn):
    model, samples = build("editor_tiny"), dataset.query[:2]
    expert_masks(model, dataset, samples)
    found = features(model, samples)
    assert list(drawn)[:3] == [("selected by", name) for name in ("attention", "brightness", "either")]
    for title, part in (("attention", found["attention_mask"]), ("either", found["mask"][:, None].expand(-1, 3, -1))):
        assert np.array_equal(drawn["selected by", title].values.reshape(2, 3, -1), part.numpy())


def test_demo_shows_its_gates(build, dataset, drawn):
    model = build("demo_tiny")
    expert_masks(model, dataset, dataset.query[:2])
    panel = drawn["gates of what modalities share"]
    assert isinstance(panel, Panel) and panel.columns[3] == "rgb+nir" and panel.columns[-1] == "rgb+nir+tir"
    np.testing.assert_allclose(panel.values, features(model, dataset.query[:2])["gates"], atol=1e-6)


def test_idea_shows_where_it_samples(build, dataset, drawn):
    model = build("idea_tiny")
    expert_masks(model, dataset, dataset.query[:2], compare_text=True)
    with_, without = drawn["offsets", "with"], drawn["offsets", "without"]
    assert not np.array_equal(with_.values, without.values)
    positions = features(model, dataset.query[:2])["positions"]  # (B, h, w, 2): x, y, 1 the middle of the last patch
    rows, columns = model.image_tower.grid_size
    x = ((positions[..., 0] + 1) / 2 * (columns - 1) + 0.5) / columns
    np.testing.assert_allclose(with_.values[:, 1, :, 2], x.flatten(1), atol=1e-6)
    first = with_.values[0, 0, 0, :2]  # the first reference point is the second patch, of a kernel that is 2 wide
    assert first == pytest.approx([1.5 / columns, 1.5 / rows])


def test_attention_is_rolled_out_of_any_plain_tower(build, dataset, drawn):
    model = build("baseline_tiny").eval()
    expert_masks(model, dataset, dataset.query[:1])
    column = drawn["attention", "roll-out"]
    tower = model.image_tower.towers()[0]
    source = SampleDataset(dataset.query[:1], eval_transform(model), model.modalities)
    images = collate([source[0]]).images[0].double()
    tower.double()
    with torch.no_grad():
        x, product = tower.stem(images), torch.eye(33, dtype=torch.float64).expand(3, -1, -1)
        for block in tower.trunk.blocks:
            q, k, _ = block.attn.qkv(block.norm1(x)).reshape(3, 33, 3, 3, 32).permute(2, 0, 3, 1, 4)
            weights = (q @ k.mT * 32**-0.5).softmax(-1).mean(1)
            product = (weights + torch.eye(33)) / 2 @ product
            x = block(x)
    np.testing.assert_allclose(column.values[0].reshape(3, -1), product[:, 0, 1:], atol=1e-5)


def test_a_tower_that_a_method_changes_shows_no_attention(build, dataset):
    """The maps of a bare tower would be those of another model."""
    with pytest.raises(ValueError, match=r"MambaPro has no experts and nothing else to show: .*fused, and it"):
        expert_masks(build("mambapro_tiny"), dataset, dataset.query[:1])


class Mine(nn.Module):
    """A model of somebody else; what it gives is not known."""

    def __init__(self):
        super().__init__()
        self.head = NEXTHead(8, 3, 2)

    def forward(self, images):
        return self.head(None, images.mean((-1, -2)).repeat(1, 1, 6)[..., :16].unflatten(-1, (2, 8)))


def test_what_there_is_not_is_named(build, dataset):
    sample = dataset.query[:1]
    with pytest.raises(ValueError, match=r"AdaptedModel has no experts .* gives embedding, and it"):
        expert_masks(adapt(Mine(), img_size=(64, 32)), dataset, sample)
    baseline = build("baseline_tiny")
    with pytest.raises(ValueError, match=r"no sampled: .* gives cls, tokens, present; it can show rollout"):
        expert_masks(baseline, dataset, sample, views=["sampled"])
    with pytest.raises(ValueError, match=r"unknown view 'sample'\. Did you mean 'sampled'"):
        expert_masks(baseline, dataset, sample, views=["sample"])
    with pytest.raises(ValueError, match="could be compared: Baseline reads none"):
        expert_masks(baseline, dataset, sample, compare_text=True)
    with pytest.raises(ValueError, match="could be compared: these samples have none"):
        expert_masks(build(), dataset, [replace(sample[0], captions=())], compare_text=True)
    with pytest.raises(ValueError, match="120 samples are too many for one image"):
        expert_masks(baseline, dataset, sample * 120)


def test_an_image_comes_out(build, dataset):
    masks = expert_masks(build(), dataset, dataset.query[:1], image_size=32)
    without = expert_masks(build(), dataset, dataset.query[:1], text=False, image_size=32)
    assert masks.mode == "RGB" and masks.width > without.width  # the captions take room
