"""What every registered model must pass, whatever its method is."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models import group_parameters
from zoo import CAPTIONS, PRESENT, TOWERS, fill, random_images, small

import nextreid
from nextreid.engine.int8 import rounded
from nextreid.layers import int8 as int8_layers
from nextreid.losses import Criterion
from nextreid.models import Head, ReIDOutput

MODELS = nextreid.list_models()
GOLDEN = Path(__file__).parents[1] / "golden"
every_model = pytest.mark.parametrize("name", MODELS + [f"next_tiny+{kind}" for kind in TOWERS])


def part_of_each_modality(model, embedding):
    """Parts ``(B, G, M, D)`` of an embedding that is made of them."""
    return embedding.unflatten(1, (-1, len(model.modalities), model.modality_width))


@every_model
def test_shapes_and_output_types(name):
    model = small(name).eval()
    images = random_images(model)
    embedding = model(images, CAPTIONS, PRESENT)
    assert isinstance(embedding, torch.Tensor) and embedding.shape == (3, model.num_features)
    assert embedding.isfinite().all()
    features = model.forward_features(images, CAPTIONS, PRESENT)
    assert all(len(part) == 3 for part in features.values())
    assert torch.equal(model.forward_head(features), embedding) and torch.equal(model.pool(features), embedding)
    model.reset_classifier(42)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in (False, True):
        out = model.train(mode)(images, CAPTIONS, PRESENT)
        assert isinstance(out, ReIDOutput) and len(out.heads) == len(model.head_widths)
        assert set(model.neck_of) == set(range(len(model.get_classifier())))
        for head, width in zip(out.heads, model.head_widths, strict=True):
            assert isinstance(head, Head) and head.logits.shape == (3, 42) and head.feature.shape == (3, width)
            assert head.present is None or (head.present.dtype == torch.bool and head.present.shape == (3,))
    model.load_state_dict(state)  # a batch norm's statistics move in training
    out = model.eval()(images, CAPTIONS, PRESENT)
    assert torch.equal(out.embedding, embedding)
    assert torch.equal(model.forward_head(out.features, pre_logits=True), embedding)


@pytest.mark.slow
@every_model
def test_8_bits_give_nearly_the_same(name, monkeypatch):
    monkeypatch.setattr(int8_layers, "_SMALLEST", 1)
    monkeypatch.setattr(int8_layers, "_FEWEST_CHANNELS", 1)
    model = small(name).eval()
    images = random_images(model)
    with torch.no_grad():
        ours, theirs = (each(images, CAPTIONS, PRESENT) for each in (model, rounded(model)))
    assert not torch.equal(ours, theirs) and torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.9


@every_model
def test_named_vectors(name):
    model = small(name, num_classes=5).eval()
    features = model.forward_features(random_images(model), CAPTIONS, PRESENT)
    first = next(iter(model.embeddings))
    assert torch.equal(model.vector(features), model.pool(features))
    assert torch.equal(model.vector(features, first), model.pool(features))
    for embedding, width in model.embeddings.items():
        assert model.vector(features, embedding).shape == (3, width)
    assert model.embeddings[first] == model.num_features
    behind = model.vector(features, after_neck=True)
    assert behind.shape == (3, sum(model.head_widths))
    heads = model.forward_head(features).heads
    for i, head, part in zip(model.neck_of, heads, behind.split(model.head_widths, 1), strict=True):
        torch.testing.assert_close(model.necks[i].classifier(part), head.logits)
    with pytest.raises(ValueError, match=rf"no embedding 'other'; there are: {first}"):
        model.vector(features, "other")
    model.reset_classifier(0)
    assert len(model.get_classifier()) == 0
    with pytest.raises(ValueError, match="no neck"):
        model.vector(features, after_neck=True)


@every_model
def test_images_encoded_once_serve_every_condition(name):
    """Captions and missing modalities come behind the image tower, so that a new pass would give the same."""
    model = small(name).eval()
    images = random_images(model)
    encoded = model.encode_images(images)
    text = model.prepare_text(CAPTIONS)
    assert (text is not None) == model.uses_text
    for captions, prepared in ((None, None), (CAPTIONS, text)):
        for present in (None, PRESENT):
            ours = model.pool(model.forward_tokens(encoded, prepared, present))
            torch.testing.assert_close(ours, model(images, captions, present), rtol=1e-4, atol=1e-5)
    changed = not torch.equal(model(images), model(images, CAPTIONS))
    assert not changed or model.uses_text


@every_model
def test_every_parameter_learns_and_the_text_tower_is_frozen(name):
    model, pid = small(name, num_classes=5), torch.tensor([0, 1, 0])
    for parameter in model.parameters():
        if not parameter.any():  # zeros let no gradient pass to what stands before them
            torch.nn.init.normal_(parameter, std=0.02)
    images = random_images(model)
    model.start_epoch(1, lambda name: (model.vector(model.forward_features(images), name).detach(), pid))
    out = model(images, CAPTIONS)
    own = model.identity_losses({n: out.features[n] for n in model.loss_parts if n in out.features}, pid)
    logits = sum(head.logits.square().sum() for head in out.heads)
    (logits + out.embedding.square().sum() + sum(out.losses.values()) + sum(own.values())).backward()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    adapted = ("image_tower.",) if "adapters" in model.param_groups() else ()
    assert all(n.startswith(("text_tower.", *adapted, *(f"{part}." for part in model.of_identities))) for n in frozen)
    assert all(n.endswith(".norm.bias") for n in frozen if n.startswith("necks."))
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0] == []


@every_model
def test_the_criterion_takes_what_the_model_gives(name):
    model = small(name, num_classes=2)
    images, pid = random_images(model, 4), torch.tensor([0, 0, 1, 1])
    present = torch.ones(4, len(model.modalities), dtype=torch.bool)
    present[0, 1] = False
    out = model(images, present=present)
    losses = Criterion()(out.heads, pid, out.losses)
    assert {"total", "identity", "triplet", *out.losses} == losses.keys()
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_model
def test_gradient_checkpointing_changes_nothing(name):
    model = small(name).eval()
    images = random_images(model)
    plain = model(images, CAPTIONS)
    plain.sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_grad_checkpointing()
    calls = []
    blocks = r"trunk\.(blocks|layers?)[\d.]+.*(fc1|conv1)"
    block = next(part for n, part in model.image_tower.named_modules() if re.search(blocks, n))
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    again = model(images, CAPTIONS)
    forward = len(calls)
    assert torch.equal(plain, again)
    again.sum().backward()
    assert len(calls) == 2 * forward
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
    if model.modality_width is not None:
        parts = part_of_each_modality(model, expected)
        assert torch.equal(parts.abs().sum((1, 3)) > 0, PRESENT)


@every_model
def test_modalities_average_over_those_that_are_there(name):
    model = small(name).eval()
    embedding = model(random_images(model), CAPTIONS, PRESENT)
    if model.modality_width is None:
        with pytest.raises(ValueError, match="not made of modalities' parts"):
            model.average_modalities(embedding)
        return
    parts, found = part_of_each_modality(model, embedding), model.average_modalities(embedding)
    for row, present in enumerate(PRESENT):
        torch.testing.assert_close(found[row], parts[row][:, present].mean(1).flatten())


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
    assert torch.equal(a.embedding, b.embedding)
    assert all(torch.equal(x.logits, y.logits) for x, y in zip(a.heads, b.heads, strict=True))
    embedder = nextreid.create_model(f"local-dir:{tmp_path / 'model'}", num_classes=0).eval()
    assert torch.equal(embedder(images, CAPTIONS, PRESENT), a.embedding)


@every_model
def test_parameter_groups_and_attributes_are_true(name):
    model = small(name, num_classes=3)
    names = [n for n, _ in model.named_parameters()]
    assert model.no_weight_decay() <= set(names)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(groups) == set(names)
    first, *blocks = [
        min(groups[n] for n in names if re.match(rf"image_tower\.0\.trunk\.{part}", n))
        for part in (r"(patch_embed|conv1)", r"(blocks|layers?)[\d.]+")
    ]
    assert first == 0 < blocks[0] < groups["necks.0.norm.weight"] == max(groups.values())
    assert all(groups[n] in (0, blocks[0]) or groups[n] > blocks[0] for n in names)
    stem = [n for n in names if re.search(r"pos_embed|_token|norm_pre|\.camera", n)]
    assert {groups[n] for n in stem if ".trunk." in n} <= {0}
    roles = model.param_groups()
    assert roles.keys() <= {"tower", "adapters", "new"}
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(n for group in roles.values() for n in group) == sorted(trainable)
    assert roles.get("tower", {}).keys() >= {n for n in trainable if ".trunk." in n}
    assert "necks.0.classifier.weight" in roles["new"]
    assert model.pretrained_cfg.architecture == name.partition("+")[0]
    assert model.pretrained_cfg.input_size == (3, *model.img_size)
    state = model.state_dict()
    assert f"{model.pretrained_cfg.first_conv}.weight" in state
    assert f"{model.pretrained_cfg.classifier}.weight" in state


@every_model
def test_bf16_is_close(name):
    model = small(name).eval()
    images = random_images(model)
    full = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images).float()
    assert half.isfinite().all()
    assert torch.nn.functional.cosine_similarity(full, half).min() > 0.9


def golden_probe(name):
    """What a model with weights from a formula makes of images from a formula."""
    model = fill(nextreid.create_model(name)).eval()
    axis = torch.arange(3 * 3 * 3 * 64 * 32, dtype=torch.float64)
    images = torch.cos(axis * 0.37).float().view(3, 3, 3, 64, 32)
    with torch.no_grad():
        found = {"captions": model(images, CAPTIONS, PRESENT), "images": model(images)}
    return {**found, "probe": images[0, 0, 0, 0, :4].clone()}


@pytest.mark.parametrize("name", [path.stem for path in sorted(GOLDEN.glob("*.safetensors"))])
def test_golden_embeddings(name):
    """Bytes on disk hold the models to what they computed when they were written."""
    found, golden = golden_probe(name), load_file(GOLDEN / f"{name}.safetensors")
    assert torch.equal(found.pop("probe"), golden.pop("probe"))
    assert found.keys() == golden.keys()
    for key, value in golden.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)


def test_every_tiny_model_has_a_golden_embedding():
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == {n for n in MODELS if n.endswith("_tiny")}


@pytest.mark.parametrize("size", [(32, 64), (64, 64)])
def test_another_image_size_resamples_the_position_table(size, tmp_path, caplog):
    """8x4 and 4x8 patches have one table length; a silent reload would scramble the positions."""
    model = small("next_tiny", img_size=(64, 32))
    nextreid.save_model(model, tmp_path / "m")
    back = nextreid.create_model(f"local-dir:{tmp_path / 'm'}", img_size=size)
    assert "resampled from 64x32 images" in caplog.text
    table, resized = model.image_tower[0].trunk.pos_embed, back.image_tower[0].trunk.pos_embed
    assert torch.equal(table[:, 0], resized[:, 0])
    grid = table[:, 1:].detach().view(1, 8, 4, -1).permute(0, 3, 1, 2)
    new = (size[0] // 8, size[1] // 8)
    expected = torch.nn.functional.interpolate(grid, new, mode="bicubic", antialias=True)
    torch.testing.assert_close(resized[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert back.pretrained_cfg.input_size == (3, *size)


def test_modalities_in_another_order_are_rejected(tmp_path):
    nextreid.save_model(small("next_tiny"), tmp_path / "m")
    with pytest.raises(ValueError, match=r"trained with modalities=\('rgb', 'nir', 'tir'\)"):
        nextreid.create_model(f"local-dir:{tmp_path / 'm'}", modalities=("nir", "rgb", "tir"))
