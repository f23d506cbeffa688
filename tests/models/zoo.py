"""Every registered model at a size that a test can afford, and weights that no random generator changes."""

import inspect
from functools import cache

import torch

import nextreid

TEXT = {"width": 32, "heads": 2, "layers": 1}
CAPTIONS = [
    [("An adult male seen from the side.", "He is carrying a backpack."), None, "The image appears blurry."],
    [None, None, None],
    [("A white sedan.",), ("A sedan.", "Roof rack is present."), ("A sedan.",)],
]
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


@cache
def _small_arguments(name):
    with torch.device("meta"):
        model = nextreid.create_model(name)
    rows, columns = model.image_tower.patch_size
    arguments = {"img_size": (4 * rows, 2 * columns)}
    if sum(p.numel() for p in model.parameters()) > 1e7:
        arguments |= {"image_tower_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}, "embed_dim": 32}
        if "text_tower" in inspect.signature(type(model)).parameters:
            arguments["text_tower"] = TEXT
    return arguments


def small(name, **kwargs):
    """The named model with narrow towers of few blocks, at 4x2 patches."""
    torch.manual_seed(0)
    return nextreid.create_model(name, **{**_small_arguments(name), **kwargs})


def random_images(model, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, len(model.modalities), 3, *model.img_size, generator=generator)


def fill(model):
    """Weights from a formula: the same on every machine and for every version of torch."""
    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(model.state_dict().items())):
            if not tensor.is_floating_point():
                continue
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * (0.7 + 0.01 * i) + i).view(
                tensor.shape
            )
            vector = tensor.dim() < 2 or name.endswith(("_bias", "norm_weight"))
            fan_in = tensor.shape[-1] if name.endswith("_weight") else tensor.shape[1:].numel()  # experts are stacked
            scale = 0.05 if vector else 1.5 / fan_in**0.5
            offset = 1.0 if "norm" in name and name.endswith(("weight", "var")) else 0.0
            tensor.copy_(offset + scale * wave)
    return model
