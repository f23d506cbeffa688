"""torch.hub: one documented function for each model, from a checkout."""

import importlib.util
from pathlib import Path

import pytest
import torch

import nextreid

CHECKOUT = str(Path(__file__).parents[1])


def load(name, **kwargs):
    return torch.hub.load(CHECKOUT, name, source="local", trust_repo=True, **kwargs)


def conf():
    spec = importlib.util.spec_from_file_location("hubconf", Path(CHECKOUT) / "hubconf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_model_is_there_and_documented():
    module = conf()
    listed = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    assert sorted(listed) == sorted(nextreid.list_models())  # what torch.hub.list lists
    for name in nextreid.list_models():
        text = getattr(module, name).__doc__
        assert text.startswith(nextreid.model_entrypoint(name).__doc__.splitlines()[0])
        assert "pretrained: Load the weights" in text


def test_a_model_comes_as_create_model_gives_it(tmp_path):
    torch.manual_seed(0)
    loaded = load("baseline_tiny", num_classes=3)
    torch.manual_seed(0)
    same = nextreid.create_model("baseline_tiny", num_classes=3).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in loaded.state_dict().items())
    folder = nextreid.save_model(loaded, tmp_path / "m")
    back = load("baseline_tiny", num_classes=3, checkpoint_path=folder).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in back.items())
    with pytest.raises(ValueError, match="no weights tagged 'nothing'"):
        load("next_tiny", pretrained=True, tag="nothing")


def test_dependencies_are_import_names():
    names = conf().dependencies
    assert {"torch", "timm", "open_clip", "PIL"} <= set(names)
    assert all(importlib.util.find_spec(name) for name in names)
