"""Models inside of what trainers wrap around them: every public entry takes them as it takes the model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from zoo import random_images, small

import nextreid
from nextreid.data import ReIDDataset, Sample
from nextreid.engine import FeatureExtractor, embed_samples, evaluate, export, extract, get_recipe, train
from nextreid.models import as_reid_model, load_checkpoint, save_model, save_pretrained


class Ema(nn.Module):
    """As timm keeps an average."""

    def __init__(self, model):
        super().__init__()
        self.module = model


class Distributed(nn.parallel.DistributedDataParallel):
    """One without a process group."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


WRAPPERS = {
    "compile": torch.compile,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": Distributed,
    "AveragedModel": AveragedModel,
    "Ema": Ema,
    "two": lambda model: nn.DataParallel(torch.compile(model)),
    "average of a compiled one": lambda model: AveragedModel(torch.compile(model)),
}


def samples():
    def image(i):
        return np.full((32, 16, 3), 20 * i, np.uint8)

    return tuple(Sample(f"s{i}", i % 2, i // 2, -1, (image(i), image(i + 1), None)) for i in range(6))


@pytest.fixture(params=WRAPPERS)
def wrapped(request):
    model = small("baseline_tiny").eval()
    return WRAPPERS[request.param](model), model.state_dict()


def test_saved_folders_load(wrapped, tmp_path):
    model, state = wrapped
    save = save_pretrained if isinstance(model, AveragedModel) else save_model
    back = nextreid.create_model(f"local-dir:{save(model, tmp_path / 'm')}").state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_checkpoints_load_into_them(wrapped, tmp_path):
    model, state = wrapped
    other = small("baseline_tiny")
    with torch.no_grad():
        other.image_tower[0].proj.weight.add_(1)
    load_checkpoint(model, save_model(other, tmp_path / "m"))
    inner = as_reid_model(model)
    assert torch.equal(inner.image_tower[0].proj.weight, other.image_tower[0].proj.weight)
    assert inner.state_dict().keys() == state.keys()


def test_they_are_embedded_evaluated_and_extracted(wrapped, tmp_path):
    model = wrapped[0]
    inner = as_reid_model(model)
    assert isinstance(inner, nextreid.models.ReIDModel)
    given = samples()
    expected = embed_samples(inner, given)
    assert torch.equal(embed_samples(model, given), expected)
    dataset = ReIDDataset("made", inner.modalities, "object", "none", (), given[:2], given)
    reports = [evaluate(m, dataset).to_dict() for m in (model, inner)]
    assert len({json.dumps({**report, "seconds": 0}) for report in reports}) == 1
    found = extract(model, given, tmp_path / "out", normalize=False)
    assert torch.equal(load_file(found.embeddings)["embedding"], expected)
    extractor = FeatureExtractor(model, normalize=False)
    assert torch.equal(extractor([s.images for s in given]), expected)


def test_they_are_trained_and_exported(tmp_path):
    """Once, as both take the model out by the same function."""
    model = small("baseline_tiny")
    given = samples()
    dataset = ReIDDataset("made", model.modalities, "object", "none", given, given[:2], given)
    recipe = get_recipe("tiny", epochs=1, num_ids=2, num_instances=2, eval_every=0)
    train(AveragedModel(model), dataset, recipe, tmp_path / "run", progress=False)
    config = json.loads((tmp_path / "run" / "last" / "config.json").read_text())
    assert config["architecture"] == "baseline_tiny" and config["num_classes"] == 2
    report = export(torch.compile(small("baseline_tiny").eval()), tmp_path / "m.pt2", "torch_export")
    assert report.path.is_file() and report.dim == 192


def test_a_plain_module_is_adapted_inside_of_its_wrapper():
    class Plain(nn.Module):
        modalities, img_size = "rgb", (8, 8)

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, images, present=None):
            return images.mean(dim=(1, 2, 3, 4))[:, None] * self.weight

    model = as_reid_model(nn.DataParallel(Plain()))
    assert model.modalities == ("rgb",) and model.num_features == 4 and model.keywords == {"present"}
    assert model(random_images(model)).shape == (3, 4)
    with pytest.raises(ValueError, match="Linear is not a re-identification model"):
        as_reid_model(nn.DataParallel(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="not built by create_model"):
        save_model(nn.DataParallel(nn.Linear(2, 2)), "nowhere")
