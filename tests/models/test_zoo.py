"""What every registered model must pass."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models import group_parameters
from zoo import CAPTIONS, PRESENT, fill, random_images, small

import nextreid
from nextreid.models import ReIDOutput

MODELS = nextreid.list_models()
GOLDEN = Path(__file__).parents[1] / "golden"
every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_shapes_and_output_types(name):
    model = small(name).eval()
    images = random_images(model)
    embedding = model(images, CAPTIONS, PRESENT)
    assert isinstance(embedding, torch.Tensor) and embedding.shape == (3, model.num_features)
    assert embedding.isfinite().all()
    features = model.forward_features(images, CAPTIONS, PRESENT)
    count, (rows, columns) = len(model.modalities), model.grid_size
    assert features["cls"].shape == (3, count, model.embed_dim)
    assert features["tokens"].shape == (3, count, rows * columns, model.embed_dim)
    torch.testing.assert_close(model.forward_head(features), embedding, rtol=1e-4, atol=1e-5)
    model.reset_classifier(42)
    model.eval()
    for mode in (False, True):
        out = model.train(mode)(images, CAPTIONS, PRESENT)
        assert isinstance(out, ReIDOutput) and out.logits.shape == (3, 42)
    assert torch.equal(model.eval()(images, CAPTIONS, PRESENT).embedding, embedding)
    assert torch.equal(model.embed(images, CAPTIONS, PRESENT), embedding)
    assert model.embed(images, CAPTIONS, PRESENT, after_neck=True).shape == embedding.shape
    model.reset_classifier(0)
    with pytest.raises(ValueError, match="no neck"):
        model.embed(images, after_neck=True)


@every_model
def test_every_parameter_learns_and_the_text_tower_is_frozen(name):
    model = small(name, num_classes=5)
    out = model(random_images(model), CAPTIONS)
    (out.logits.square().sum() + out.embedding.square().sum()).backward()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert all(n.startswith("text_tower.") or n == "neck.norm.bias" for n in frozen)
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    silent = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert silent == []


@every_model
def test_gradient_checkpointing_changes_nothing(name):
    model = small(name, drop=0.0) if name.startswith("next") else small(name)
    images = random_images(model)
    plain = model(images, CAPTIONS)
    plain.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_grad_checkpointing()
    again = model(images, CAPTIONS)
    assert torch.equal(plain, again)
    again.sum().backward()
    for n, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, grads[n])


@every_model
def test_a_row_alone_equals_the_row_in_a_batch(name):
    model = small(name, num_cameras=2).double().eval()
    images = random_images(model).double()
    camid = torch.tensor([1, -1, 0])
    whole = model(images, CAPTIONS, PRESENT, camid)
    for i in range(3):
        row = slice(i, i + 1)
        alone = model(images[row], CAPTIONS[row], PRESENT[row], camid[row])
        torch.testing.assert_close(alone, whole[row], rtol=1e-6, atol=1e-6)


@every_model
def test_absent_images_hold_nothing(name):
    model = small(name).eval()
    images = random_images(model)
    expected = model(images, CAPTIONS, PRESENT)
    images[~PRESENT] = torch.nan
    assert torch.equal(model(images, CAPTIONS, PRESENT), expected)
    blocks = expected.view(3, -1, len(model.modalities), model.embed_dim).abs().sum((1, 3))
    assert torch.equal(blocks > 0, PRESENT)


@every_model
@pytest.mark.parametrize("modalities", [("rgb",), ("rgb", "tir"), ("rgb", "nir", "tir", "event", "depth")])
def test_any_number_of_modalities(name, modalities):
    model = small(name, modalities=modalities).eval()
    captions = [["A person."] * len(modalities)] * 2
    assert model(random_images(model, 2), captions).shape == (2, model.num_features)
    assert model(random_images(model, 2)).isfinite().all()


@every_model
def test_saved_and_loaded_embeddings_are_bit_equal(name, tmp_path):
    model = small(name, num_classes=4, num_cameras=2, share_image_tower=False).eval()
    images = random_images(model)
    nextreid.save_model(model, tmp_path / "model")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "model", "model.safetensors"]
    back = nextreid.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    assert type(back) is type(model) and back.num_classes == 4 and back.img_size == model.img_size
    a, b = model(images, CAPTIONS, PRESENT), back(images, CAPTIONS, PRESENT)
    assert torch.equal(a.embedding, b.embedding) and torch.equal(a.logits, b.logits)
    embedder = nextreid.create_model(f"local-dir:{tmp_path / 'model'}", num_classes=0).eval()
    assert torch.equal(embedder(images, CAPTIONS, PRESENT), a.embedding)


@every_model
def test_parameter_groups_and_attributes_are_true(name):
    model = small(name, num_classes=3)
    names = [n for n, _ in model.named_parameters()]
    assert model.no_weight_decay() <= set(names)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == {n for n in names}
    assert groups["image_tower.trunk.pos_embed"] == 0 < groups["image_tower.trunk.blocks.0.norm1.weight"]
    assert max(groups.values()) == groups["neck.norm.weight"] > groups["image_tower.trunk.blocks.0.norm1.weight"]
    assert model.pretrained_cfg.architecture == name
    assert model.pretrained_cfg.input_size == (3, *model.img_size)
    state = model.state_dict()
    assert f"{model.pretrained_cfg.first_conv}.weight" in state
    assert f"{model.pretrained_cfg.classifier}.weight" in state
    assert model.get_classifier() is model.neck


@every_model
def test_bf16_is_close(name):
    model = small(name).eval()
    images = random_images(model)
    full = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images).float()
    assert half.isfinite().all()
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.9


@pytest.mark.parametrize("name", ["next_tiny", "baseline_tiny"])
def test_golden_embeddings(name):
    """Bytes on disk hold the models to what they computed when they were written."""
    model = fill(nextreid.create_model(name)).eval()
    golden = load_file(GOLDEN / f"{name}.safetensors")
    axis = torch.arange(3 * 3 * 3 * 64 * 32, dtype=torch.float64)
    images = torch.cos(axis * 0.37).float().view(3, 3, 3, 64, 32)
    assert torch.equal(images[0, 0, 0, 0, :4], golden["probe"])
    with torch.no_grad():
        torch.testing.assert_close(model(images, CAPTIONS, PRESENT), golden["captions"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(images), golden["images"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 64), (64, 64)])
def test_another_image_size_resamples_the_position_table(size, tmp_path, caplog):
    """8x4 and 4x8 patches have one table length; a silent reload would scramble the positions."""
    model = small("next_tiny", img_size=(64, 32))
    nextreid.save_model(model, tmp_path / "m")
    back = nextreid.create_model(f"local-dir:{tmp_path / 'm'}", img_size=size)
    assert "resampled from 64x32 images" in caplog.text
    table, resized = model.image_tower.trunk.pos_embed, back.image_tower.trunk.pos_embed
    assert torch.equal(table[:, 0], resized[:, 0])
    grid = table[:, 1:].detach().view(1, 8, 4, -1).permute(0, 3, 1, 2)
    new = (size[0] // 8, size[1] // 8)
    expected = torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True)
    torch.testing.assert_close(resized[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert back.pretrained_cfg.input_size == (3, *size)


def test_modalities_in_another_order_are_refused(tmp_path):
    nextreid.save_model(small("next_tiny"), tmp_path / "m")
    with pytest.raises(ValueError, match=r"trained with modalities=\['rgb', 'nir', 'tir'\]"):
        nextreid.create_model(f"local-dir:{tmp_path / 'm'}", modalities=("nir", "rgb", "tir"))
