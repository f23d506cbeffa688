"""Every registered model at a size that a test can afford, and weights that no random generator changes."""

import inspect
from functools import cache

import torch

import nextreid

TOWERS = {
    "rope": ("vit_small_patch16_dinov3", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
    "pooled": ("vit_base_patch16_siglip_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
    "cnn": ("resnet10t", {"channels": [16, 16, 24, 32], "output_stride": 16}),
    "stages": ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}),
}
"""A small tower of each kind besides the plain one: rotary positions and registers, pooled by attention, and so on."""
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
    if model.image_tower.towers()[0].layout.pool == "head":
        arguments["image_tower"], arguments["image_tower_args"] = TOWERS["cnn"]
    elif sum(p.numel() for p in model.parameters()) > 1e7:
        arguments |= {"image_tower_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}, "embed_dim": 32}
        if "text_tower" in inspect.signature(type(model)).parameters:
            arguments["text_tower"] = TEXT
    return arguments


def small(name, **kwargs):
    """The named model with narrow towers of few blocks, at 4x2 patches; ``name+kind`` has another of `TOWERS`."""
    torch.manual_seed(0)
    name, _, kind = name.partition("+")
    given = {**_small_arguments(name), **kwargs}
    if kind:
        given |= dict(zip(("image_tower", "image_tower_args"), TOWERS[kind], strict=True), img_size=(64, 32))
    if kind not in ("", "rope") or given.get("image_tower") == TOWERS["cnn"][0]:
        given.pop("num_cameras", None)  # they are added to a class token
    model = nextreid.create_model(name, **given)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # timm's residual branches begin as zeros, which no gradient passes
            torch.nn.init.ones_(norm.weight)
    for name, parameter in model.named_parameters():
        if model.param_role(name) == "adapters" and not parameter.any():  # as do prompts and adapters
            torch.nn.init.normal_(parameter, std=0.02)
    return model


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
