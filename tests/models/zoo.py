"""Every registered model at a size that a test can afford, and weights that no random generator changes."""

import torch

import nextreid

PATCH = {"next_clip_l14": 14}
TEXT = {"width": 32, "heads": 2, "layers": 1}
CAPTIONS = [
    [("An adult male seen from the side.", "He is carrying a backpack."), None, "The image appears blurry."],
    [None, None, None],
    [("A white sedan.",), ("A sedan.", "Roof rack is present."), ("A sedan.",)],
]
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def small(name, **kwargs):
    """The named model with narrow towers of few blocks, at 4x2 patches."""
    torch.manual_seed(0)
    patch = PATCH.get(name, 8 if name.endswith("tiny") else 16)
    args = {"img_size": (4 * patch, 2 * patch)}
    if not name.endswith("tiny"):
        args |= {"image_tower_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}, "embed_dim": 32}
        if name.startswith("next"):
            args["text_tower"] = TEXT
    return nextreid.create_model(name, **{**args, **kwargs})


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
            scale = 1.0 if tensor.dim() < 2 else 1.5 / max(1, tensor[0].numel()) ** 0.5
            offset = 1.0 if "norm" in name and name.endswith(("weight", "var")) else 0.0
            tensor.copy_(offset + (0.05 if tensor.dim() < 2 else scale) * wave)
    return model
