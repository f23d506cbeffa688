"""The code of related methods' authors, from checkouts: what a step and an embedding of theirs cost.

NEXTREID_DEMO, NEXTREID_IDEA, NEXTREID_TOPREID, NEXTREID_EDITOR and NEXTREID_MAMBAPRO name checkouts of
github.com/924973292/DeMo and so on. Nothing of theirs is copied or changed: a process imports the checkout, with
stand-ins for what is missing. CUDA's calls do nothing; pretrained weights are random; packages that draw, count or read
settings are empty. EDITOR's wavelets are left out, which with their inverse are the identity. MambaPro's scan, a CUDA
kernel, is a loop over the tokens. ICPL-ReID is not among them: its step stands inside of its loop over epochs.
"""

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
import torch.nn.functional as F
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn

from .models import CAMERAS, CLASSES, RELATED
from .text import Captions
from .turns import Piece

AUTHORS = ("DeMo", "IDEA", "TOP-ReID", "EDITOR", "MambaPro")


def checkout(name: str) -> Path:
    """Folder of a method's code, as its variable says."""
    return Path(os.environ.get(_variable(name), ""))


def found(name: str) -> bool:
    """Whether there is a checkout; says how to name one if not."""
    there = (checkout(name) / "modeling" / "make_model.py").is_file()
    if not there:
        variable = _variable(name)
        given = os.environ.get(variable, "")
        print(f"{name} is skipped: {variable} is {given!r}; set it to a checkout of 924973292/{name}")
    return there


def _variable(name: str) -> str:
    return f"NEXTREID_{name.upper().replace('-', '')}"


def check_size(name: str, millions: float) -> None:
    """Raise ValueError if a model has not the parameters that were counted in its authors' code elsewhere."""
    if name in RELATED and abs(millions - RELATED[name][0]) > 0.02:
        raise ValueError(f"{name} has {millions} M parameters here and {RELATED[name][0]} M where it was counted")


def batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images ``(B, M, 3, H, W)``, identities and cameras: samples of two identities."""
    return torch.randn(size, 3, 3, 256, 128), 2 * torch.arange(size) // size, torch.arange(size) % CAMERAS


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Bfloat16 where it is asked for."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)


def finite(values: Tensor) -> None:
    """Raise FloatingPointError unless all values are finite."""
    if not torch.isfinite(values).all():
        raise FloatingPointError("the result is not finite")


def theirs(
    name: str, captions: Captions, device: str = "cpu", bare: bool = False
) -> tuple[nn.Module, dict[str, Piece]]:
    """The model of a checkout, and its step and embedding as its training loop and its evaluation have them.

    With ``bare`` a step is forward and backward from the sum of all outputs: no losses, no optimizer.
    """
    _stand_in()
    sys.path.insert(0, str(checkout(name)))
    cfg = importlib.import_module("config").cfg
    for section, values in yaml.safe_load((checkout(name) / f"configs/RGBNT201/{name}.yml").read_text()).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            setattr(getattr(cfg, section), key, value)
    _without_weights(name)
    model = importlib.import_module("modeling").make_model(cfg, num_class=CLASSES, camera_num=CAMERAS).to(device)
    criterion, center = importlib.import_module("layers.make_loss").make_loss(cfg, num_classes=CLASSES)
    optimizer, _ = importlib.import_module("solver.make_optimizer").make_optimizer(cfg, model, center)
    images, pid, camid = (t.to(device) for t in batch(len(captions)))
    inputs: dict[str, Any] = {"cam_label": camid}
    by_name = {key: images[:, m] for m, key in enumerate(("RGB", "NI", "TI"))}
    training: dict[str, Any] = {"writer": MagicMock(), "epoch": 1} if name == "EDITOR" else {}
    if name == "IDEA":
        tokenize = importlib.import_module("modeling.clip.clip").tokenize
        texts = {key: [" ".join(sentences[m]) for sentences in captions] for m, key in enumerate(("rgb", "ni", "ti"))}
        inputs["text"] = {f"{key}_text": tokenize(text, truncate=True).to(device) for key, text in texts.items()}

    def step(dtype: torch.dtype) -> None:
        model.train()
        optimizer.zero_grad()
        with autocast(dtype):
            output = model(by_name, label=pid, **inputs, **training)
            loss: Any = output[-1] if len(output) % 2 else 0.0  # behind scores and features in turn
            for i in range(0, len(output) - 1, 2):
                if bare:
                    loss = loss + output[i].sum() + output[i + 1].sum()
                else:
                    loss = loss + criterion(score=output[i], feat=output[i + 1], target=pid, target_cam=camid)
        loss.backward()
        if bare:
            return
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of {name} is not finite")

    def embed(dtype: torch.dtype) -> None:
        model.eval()
        with torch.no_grad(), autocast(dtype):
            feature = model(by_name, **inputs)
        if not bare:
            finite(feature["LOCAL"] if isinstance(feature, dict) else feature)

    return model, {"step": step, "embedding": embed}


def _stand_in() -> None:
    """Let the authors' code run where there is no GPU and where packages are missing that no step needs."""
    wanted = (
        "fvcore fvcore.nn fvcore.nn.jit_handles cv2 gdown matplotlib matplotlib.pyplot seaborn tensorboardX yacs "
        "yacs.config torch.utils.tensorboard"
    ).split()
    missing = [name for name in wanted if importlib.util.find_spec(name.split(".")[0]) is None]
    sys.modules.update({name: MagicMock() for name in missing})
    if "yacs.config" in missing:
        vars(sys.modules["yacs.config"])["CfgNode"] = SimpleNamespace
    kernel, wavelets = ModuleType("mamba_ssm.ops.selective_scan_interface"), ModuleType("pytorch_wavelets")
    vars(kernel).update(selective_scan_fn=scan, selective_scan_ref=scan)
    vars(wavelets).update(DWTForward=_Wavelets, DWTInverse=_Inverse)
    sys.modules.update({"mamba_ssm": ModuleType("mamba_ssm"), "mamba_ssm.ops": ModuleType("mamba_ssm.ops")})
    sys.modules.update({kernel.__name__: kernel, wavelets.__name__: wavelets})
    move, to = nn.Module.to, torch.Tensor.to
    # Their code moves what it makes to the GPU by name.
    patch.object(nn.Module, "to", lambda self, *at, **how: self if at == ("cuda",) else move(self, *at, **how)).start()
    patch.object(torch.Tensor, "to", lambda self, *at, **how: self if at == ("cuda",) else to(self, *at, **how)).start()
    for kind in (nn.Module, torch.Tensor):
        patch.object(kind, "cuda", lambda self, *_: self).start()


class _Wavelets(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x, []


class _Inverse(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()

    def forward(self, bands: Any) -> Tensor:
        return bands[0]


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """The selective scan of Mamba, token by token: u and delta ``(B, E, L)``, A ``(E, N)``, B and C ``(B, N, L)``."""
    delta = F.softplus(delta.float() + delta_bias[:, None])
    decay = torch.exp(delta[..., None] * A[:, None])  # (B, E, L, N)
    drive = (delta * u.float())[..., None] * B.float().mT[:, None]
    state, rows = u.new_zeros(u.shape[0], *A.shape, dtype=torch.float32), []
    for here, more, read in zip(decay.unbind(2), drive.unbind(2), C.float().unbind(2), strict=True):
        state = here * state + more
        rows.append((state @ read[..., None])[..., 0])
    return (torch.stack(rows, dim=2) + D[:, None] * u).to(u.dtype)


def _without_weights(name: str) -> None:
    """Put random weights in the place of pretrained ones, which their constructors read."""
    if name in ("TOP-ReID", "EDITOR"):
        towers = importlib.import_module("modeling.backbones.vit_pytorch")
        for kind in vars(towers).values():
            if isinstance(kind, type) and issubclass(kind, nn.Module) and "load_param" in vars(kind):
                patch.object(kind, "load_param", lambda *_, **__: None).start()
        return
    holder = "modeling.meta_arch" if name in ("DeMo", "IDEA") else "modeling.make_model"
    vars(importlib.import_module(holder))["load_clip_to_cpu"] = _random_clip


def _random_clip(cfg: Any, name: str, height: int, width: int, stride: Any) -> nn.Module:
    """The authors' CLIP class in the sizes of ViT-B/16, in place of its reader of downloaded weights."""
    build: Callable[..., nn.Module] = importlib.import_module("modeling.clip.model").CLIP
    return build(cfg, 512, 224, 12, 768, 16, stride, 77, 49408, 512, 8, 12, height, width).eval()
