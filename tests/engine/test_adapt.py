"""A plain module, an own backbone with NEXT's head, through everything that takes a model."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import nextreid
from nextreid.engine import EmbedOptions, FeatureExtractor, evaluate, export, extract, modality_matrix, train
from nextreid.layers import NEXTHead
from nextreid.models import ReIDModel, load_checkpoint

SIZE = (64, 32)


class Mine(nn.Module):
    """A small CNN whose feature map goes through NEXT's head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.head = NEXTHead(32, 3, in_dim=16, num_semantic_experts=1, num_structure_experts=2, text_modulation=False)

    def forward(self, images, present=None):
        maps = self.backbone(images.flatten(0, 1)).flatten(2).transpose(1, 2)
        return self.head(None, maps.unflatten(0, images.shape[:2]), present=present)


class Blind(nn.Module):
    """It is not told what is present."""

    def __init__(self):
        super().__init__()
        self.modalities, self.img_size = ("rgb", "nir", "tir"), SIZE
        self.proj = nn.Linear(3 * 3, 24)

    def forward(self, images):
        return self.proj(images.mean((-2, -1)).flatten(1))


def mine(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nextreid.adapt(Mine(), img_size=SIZE)


def test_an_adapted_module_goes_through_everything(dataset, recipe, tmp_path):
    model = mine()
    assert isinstance(model, ReIDModel) and model.num_features == 2 * 3 * 32
    report = train(model, dataset, recipe, tmp_path / "run", progress=False)
    assert report.last["loss"]["total"] > 0 and report.last["evaluation"]["text"] is False
    assert evaluate(model, dataset).result.mAP == report.last["evaluation"]["mAP"]
    assert len(modality_matrix(model, dataset)) == 7
    done = extract(model, dataset.query[:3], tmp_path / "vectors", options=EmbedOptions(3))
    samples = [dict(zip(dataset.modalities, sample.images, strict=True)) for sample in dataset.query[:3]]
    assert torch.equal(FeatureExtractor(model, batch_size=3)(samples), load_file(done.embeddings)["embedding"])
    assert export(model, tmp_path / "model.pt2", "torch_export", check=dataset.query[:4]).cosine > 0.999
    run = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert run["model"]["architecture"] == "Mine"


def test_its_run_is_resumed_to_the_bit_and_its_checkpoint_loaded(dataset, recipe, tmp_path):
    whole = mine()
    train(whole, dataset, replace(recipe, epochs=2), tmp_path / "whole", progress=False)
    cut, steps = mine(), []

    def stop(*_):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    hook = cut.module.head.register_forward_hook(lambda module, *_: stop() if module.training else None)
    with pytest.raises(KeyboardInterrupt):
        train(cut, dataset, replace(recipe, epochs=2), tmp_path / "cut", progress=False)
    hook.remove()
    train(mine(5), dataset, replace(recipe, epochs=2), tmp_path / "cut", resume=True, progress=False)
    ours, theirs = (load_file(tmp_path / n / "last" / "model.safetensors") for n in ("cut", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ValueError, match=r"holds a Mine.*its user's code.*nextreid\.adapt.*load_checkpoint"):
        nextreid.create_model(f"local-dir:{tmp_path / 'whole' / 'last'}")
    fresh = mine(7)
    load_checkpoint(fresh, tmp_path / "whole" / "last")
    images = torch.rand(2, 3, 3, *SIZE)
    whole.reset_classifier(0)
    assert torch.equal(fresh.eval()(images), whole.eval()(images))
    assert fresh.pretrained_cfg.trained_on["dataset"] == "tints"


def test_an_absent_modality_has_no_part():
    model = mine().eval()
    images, present = torch.rand(2, 3, 3, *SIZE), torch.tensor([[True, False, True], [True, True, True]])
    other = images.clone()
    other[0, 1] = torch.nan
    assert torch.equal(model(images, present=present), model(other, present=present))
    assert not torch.equal(model(images, present=present)[0], model(images)[0])


def test_a_module_that_names_modalities_and_size_is_adapted_and_warned_of_once(dataset, tmp_path, caplog):
    module = Blind().train()
    with caplog.at_level(logging.WARNING):
        assert len(modality_matrix(module, dataset)) == 7
        hidden = evaluate(module, dataset, missing=("rgb",))
    assert hidden.missing == ("rgb",) and module.training
    assert [r.message.partition(" ")[0] for r in caplog.records] == ["Blind"] and "cannot tell" in caplog.text
    assert extract(module, dataset.query[:2], tmp_path).dim == 24
    assert repr(FeatureExtractor(module)) == "FeatureExtractor(Blind, rgb+nir+tir, 24 numbers, cpu)"


def test_text_reaches_a_module_that_prepares_it(dataset):
    class Reads(Blind):
        def prepare_text(self, captions):
            return torch.tensor([[float(len(" ".join(c or ()))) for c in row] for row in captions])

        def forward(self, images, text=None, **more):
            embedding = super().forward(images)
            return embedding if text is None else embedding + text.sum(1, keepdim=True) * torch.arange(24)

    module = Reads()
    assert evaluate(module, dataset).text and not evaluate(module, dataset, text=False).text
    assert evaluate(module, dataset).result.ap.tolist() != evaluate(module, dataset, text=False).result.ap.tolist()


def test_what_cannot_be_adapted_is_named(dataset, recipe, tmp_path):
    plain = nn.Linear(3, 4)
    for call in (
        lambda: train(plain, dataset, recipe, tmp_path / "run"),
        lambda: evaluate(plain, dataset),
        lambda: modality_matrix(plain, dataset),
        lambda: extract(plain, dataset.query, tmp_path / "out"),
        lambda: FeatureExtractor(plain),
        lambda: export(plain, tmp_path / "x", "torch_export"),
    ):
        with pytest.raises(ValueError, match=r"Linear is not a re-identification model.*nextreid\.adapt\("):
            call()
    with pytest.raises(ValueError, match="Linear does not embed a blank sample"):
        nextreid.adapt(plain)
    with pytest.raises(ValueError, match="Conv3d must map images"):
        nextreid.adapt(nn.Conv3d(3, 3, 1))
    with pytest.raises(ValueError, match="Identity has no parameter"):
        nextreid.adapt(nn.Identity())
    with pytest.raises(ValueError, match="one value or one for each of three channels"):
        nextreid.adapt(Mine(), img_size=SIZE, mean=(0.1, 0.2))
    assert list(tmp_path.iterdir()) == []
