"""The models under torch.compile and torch.export, and in half precision."""

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import nextreid
from nextreid.models._tiny import TINY_IMAGE

TINY = nextreid.list_models("*_tiny")
TRACED = [name if name == "next_tiny" else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
TOWER = {"image_tower_args": {**TINY_IMAGE["image_tower_args"], "depth": 2}}  # every block is traced


def batch(model, size=4):
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, 3, *model.img_size, generator=generator)
    text = model.prepare_text([[None] * 3], lambda *_: ())
    if text is not None:
        text = torch.randn(size, *text.shape[1:], generator=generator)
    present = torch.ones(size, 3, dtype=torch.bool)
    present[0, 1] = False
    return images, text, present


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TRACED)
def test_training_compiles_as_one_graph_and_once(name):
    model = nextreid.create_model(name, num_classes=3, **TOWER)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for size in range(3):
        images, text, present = batch(model)
        images += size
        present[size] = torch.tensor([False, True, False])
        model.zero_grad()
        torch.manual_seed(size)
        out = compiled(images, text, present)
        (out.embedding.square().mean() + out.heads[0].logits.square().mean()).backward()
        assert torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).isfinite().all()
    assert counter.frame_count == 1


def test_cameras_break_no_graph_and_compile_once():
    model = nextreid.create_model("baseline_tiny", num_cameras=4, **TOWER).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    images, _, present = batch(model)
    for camid in ([0, 1, 2, 3], [3, 3, 0, -1], [-1, -1, -1, 0]):
        camid = torch.tensor(camid)
        expected = model(images, None, present, camid)
        torch.testing.assert_close(compiled(images, None, present, camid), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
    with pytest.raises(IndexError):
        compiled(images, None, present, torch.tensor([0, 1, 2, 4]))


@pytest.mark.parametrize("name", TRACED)
def test_inference_compiles_to_the_same_embedding(name):
    model = nextreid.create_model(name, **TOWER).eval()
    with torch.no_grad():
        inputs = batch(model)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRACED)
def test_an_exported_model_takes_any_batch(name):
    model = nextreid.create_model(name, **TOWER).eval()
    inputs = batch(model)
    size = torch.export.Dim("batch", min=2, max=64)
    shapes = tuple(None if tensor is None else {0: size} for tensor in inputs)
    program = torch.export.export(model, inputs, dynamic_shapes=(*shapes, None)[: len(inputs)])
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for count in (2, 7):
        others = batch(model, count)
        with torch.no_grad():
            torch.testing.assert_close(loaded(*others), model(*others), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_weights_in_half_precision_give_nearly_the_same_embedding(name):
    model = nextreid.create_model(name).eval()
    images, text, present = batch(model, 8)
    with torch.no_grad():
        exact = model(images, text, present)
        half = model.bfloat16()(images, text, present)
    assert half.dtype == torch.bfloat16
    similarity = torch.cosine_similarity(half.float(), exact, dim=-1)
    # Where a method keeps or drops tokens, a near tie may fall the other way in one sample or another.
    assert similarity.mean() > 0.99 and similarity.min() > 0.95


@pytest.mark.parametrize("name", TINY)
def test_recomputing_activations_changes_no_gradient(name):
    model = nextreid.create_model(name).eval()  # without dropout
    inputs = batch(model)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(*inputs).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)
