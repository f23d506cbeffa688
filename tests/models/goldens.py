"""What the related methods' own code gives for weights and inputs that anybody can make; see ``../shared/goldens``."""

import importlib.util
import json
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nextreid.models._authors import build_from_authors

FOLDER = Path(__file__).parents[3] / "shared" / "goldens"


class Golden:
    """One golden: the authors' names and shapes, the inputs, and what they give.

    A test that makes one is skipped where the folder is absent.
    """

    def __init__(self, name):
        if not (FOLDER / f"{name}.json").is_file():
            pytest.skip(f"no goldens of {name} beside the project")
        self.facts = json.loads((FOLDER / f"{name}.json").read_text())
        spec = importlib.util.spec_from_file_location("nextreid_golden_fill", FOLDER / "fill.py")
        self.fill = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fill)
        self._file = safe_open(FOLDER / f"{name}.safetensors", "pt")
        self.names = set(self._file.keys())
        self.camid = self._camid("evaluation")
        self.training = self.facts["training"]
        self.training_camid = self._camid("training")
        self.training_pid = torch.tensor(self.training["pid"])
        self.captions = self.facts["evaluation"].get("captions")

    @cached_property
    def state(self):
        """The authors' filled state."""
        state = {k: torch.empty(shape, dtype=getattr(torch, d)) for k, (d, shape) in self.facts["keys"].items()}
        self.fill.fill(state, self.facts["fill"]["seed"], self.facts["fill"]["aliases"])
        assert self.fill.digest(state) == self.facts["fill"]["sha256"]
        return state

    def images(self, part="evaluation"):
        """Images ``(B, 3, 3, H, W)`` of the ``"evaluation"`` or the ``"training"``."""
        height, width = self.facts["model"]["height"], self.facts["model"]["width"]
        if part == "evaluation":
            return self.fill.pictures(5, 2, height, width)
        return self.fill.pictures(156, 4, height, width, "training")

    def tensor(self, name):
        """A tensor of the golden."""
        return self._file.get_tensor(name)

    def distance(self, name, ours):
        """Relative L2 distance of ours from a tensor of the golden."""
        theirs = self.tensor(name)
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)}, the authors have {tuple(theirs.shape)}"
        return float((ours.double() - theirs.double()).norm() / theirs.double().norm())

    def close(self, name, ours, tolerance=1e-5):
        """Assert that ours is the authors'."""
        assert self.distance(name, ours) <= tolerance, f"{name}: {self.distance(name, ours):.1e}"

    def model(self, method, model_name=None, **arguments):
        """Our model, filled with the authors' weights."""
        return build_from_authors(method, self.state, model_name, **arguments)[0]

    def _camid(self, part):
        camid = self.facts[part]["camid"]
        return None if camid is None else torch.tensor(camid)


def silence(model):
    """Set every dropout and drop-path rate of a model to zero, for training outputs that repeat."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(getattr(module, "attn_drop", None), float):
            module.attn_drop = 0.0
    return model
