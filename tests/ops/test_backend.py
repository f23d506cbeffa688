"""Choosing the form of an operation, and a whole model in each of them."""

import os
import subprocess
import sys

import pytest
import torch

from nextreid.ops import get_backend, resolve, set_backend, use_backend


@pytest.fixture(autouse=True)
def unchosen(monkeypatch):
    monkeypatch.delenv("NEXTREID_OPS", raising=False)
    set_backend(None)
    yield
    set_backend(None)


def test_the_innermost_choice_holds(monkeypatch):
    assert get_backend() == "auto"
    monkeypatch.setenv("NEXTREID_OPS", "torch")
    assert get_backend() == "torch"
    set_backend("auto")
    assert get_backend() == "auto"
    with pytest.raises(RuntimeError), use_backend("triton"):
        assert get_backend() == "triton"
        raise RuntimeError
    assert get_backend() == "auto"
    set_backend(None)
    assert get_backend() == "torch"


def test_unknown_names_are_rejected(monkeypatch):
    with pytest.raises(ValueError, match="allowed: auto, torch, triton"):
        set_backend("cuda")
    monkeypatch.setenv("NEXTREID_OPS", "fast")
    with pytest.raises(ValueError, match="NEXTREID_OPS names the backend 'fast'"):
        get_backend()


def test_auto_serves_what_triton_cannot(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert resolve(torch.zeros(1)) == "torch"
    assert resolve(torch.zeros(1, device="meta")) == "torch"
    with use_backend("triton"):
        with pytest.raises(ValueError, match="on cpu; the kernels need a GPU"):
            resolve(torch.zeros(1))
        with pytest.raises(ValueError, match=r"torch\.float64"):
            resolve(torch.zeros(1, device="meta", dtype=torch.float64))
        assert resolve(torch.zeros(1, device="meta"), None) == "triton"


MODEL = """
import torch, nextreid
from nextreid.ops import use_backend
torch.manual_seed(0)
model = nextreid.create_model("next_tiny", head={"drop": 0.1})
images, text = torch.randn(2, 3, 3, *model.img_size), torch.randn(2, 3, 3, model.embed_dim)
present = torch.tensor([[True, True, True], [True, False, True]])
results = []
for name in ("torch", "triton"):
    with use_backend(name):
        model.zero_grad()
        torch.manual_seed(1)
        out = model(images, text, present)
        out.square().mean().backward()
    results.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
assert len(results[0]) == len(results[1]) > 60
for ours, theirs in zip(*results):
    assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, (ours, theirs)
print("equal", len(results[0]))
"""


def test_a_model_trains_on_the_kernels():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MODEL], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("equal"), done.stderr
