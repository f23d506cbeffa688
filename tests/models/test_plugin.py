"""NEXT's head on third-party backbones: timm's families, a ReID library's, one to five modalities."""

import socket

import pytest
import timm
import torch
from torch import nn

import nextreid
from nextreid.layers import BNNeck, NEXTHead
from nextreid.losses import Criterion

DINO = {  # name: patch, number of tokens before the patches
    "vit_small_patch14_dinov2": (14, 1),
    "vit_small_patch14_reg4_dinov2": (14, 5),
    "vit_small_patch16_dinov3": (16, 5),
    "vit_small_patch16_dinov3_qkvb": (16, 5),
}


class Pedestrians(nn.Module):
    """As ReID libraries build them: logits in training, a pooled vector in evaluation, the map only inside."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, 4), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 24, 3, 4, 1), nn.BatchNorm2d(24))
        )
        self.classifier = nn.Linear(24, num_classes)

    def featuremaps(self, x):
        return self.layers(x)

    def forward(self, x):
        vector = self.featuremaps(x).mean((2, 3))
        return self.classifier(vector) if self.training else vector


def of_vit(backbone, images):
    features = backbone.forward_features(images)
    return features[:, 0], features[:, backbone.num_prefix_tokens :]


def of_map(backbone, images):
    return None, backbone.forward_features(images).flatten(2).mT  # (n, C, h, w)


def of_map_channels_last(backbone, images):
    return None, backbone.forward_features(images).flatten(1, 2)  # (n, h, w, C)


def of_library_map(backbone, images):
    return None, backbone.featuremaps(images).flatten(2).mT


def of_library_vector(backbone, images):
    return None, backbone.eval()(images)[:, None]


SWIN = {"window_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)}
BACKBONES = {  # split, width and tokens of an image of 64x32
    "dinov3": (of_vit, 384, 8, lambda: vit("vit_small_patch16_dinov3", depth=1)),
    "resnet": (of_map, 2048, 2, lambda: timm.create_model("resnet26", num_classes=0)),
    "swin": (
        of_map_channels_last,
        128,
        2,
        lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=(64, 32), **SWIN),
    ),
    "library map": (of_library_map, 24, 8, Pedestrians),
    "library vector": (of_library_vector, 24, 1, Pedestrians),
}


def vit(name, size=(64, 32), **args):
    return timm.create_model(name, num_classes=0, img_size=size, **args)


class Plugged(nn.Module):
    """Any backbone, only for images that exist, and the head."""

    def __init__(self, backbone, split, width, modalities, **settings):
        super().__init__()
        self.backbone, self.split = backbone, split
        self.head = NEXTHead(32, modalities, in_dim=width, num_heads=4, mlp_ratio=1.0, ffn_ratio=1.0, **settings)
        self.neck = BNNeck(self.head.num_features, 2)

    def forward(self, images, text=None, present=None):
        there = torch.ones(images.shape[:2], dtype=torch.bool) if present is None else present
        cls, tokens = (None if x is None else self.spread(x, there) for x in self.split(self.backbone, images[there]))
        return self.head(cls, tokens, text, present)

    @staticmethod
    def spread(x, there):
        return x.new_zeros(*there.shape, *x.shape[1:]).index_put((there,), x)


def plugged(name, modalities, **settings):
    torch.manual_seed(0)
    split, width, count, build = BACKBONES[name]
    model = Plugged(build(), split, width, modalities, **settings)
    images = torch.randn(4, modalities, 3, 64, 32)
    return model, images, count


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("modalities", [1, 2, 5])
def test_any_backbone_and_any_number_of_modalities(name, modalities):
    model, images, count = plugged(name, modalities)
    model.eval()
    with torch.no_grad():
        embedding = model(images)
        parts = model.head(*pair(model, images), return_parts=True)
    assert embedding.shape == (4, 4 * modalities * 32) and embedding.isfinite().all()
    assert parts["mask"].shape == (4, 3, modalities, count)
    if modalities == 1:
        return
    present = torch.ones(4, modalities, dtype=torch.bool)
    present[0, 1] = present[1, 0] = present[1, 2:] = False
    images[~present] = torch.nan
    with torch.no_grad():
        missing = model(images, present=present)
    assert torch.equal(missing.view(4, 4, modalities, 32).abs().sum((1, 3)) > 0, present)
    torch.testing.assert_close(missing[2:], embedding[2:], rtol=1e-4, atol=1e-5)


def pair(model, images):
    cls, tokens = model.split(model.backbone, images.flatten(0, 1))
    return cls if cls is None else cls.unflatten(0, images.shape[:2]), tokens.unflatten(0, images.shape[:2])


@pytest.mark.parametrize("name", BACKBONES)
def test_a_training_step_reaches_every_weight(name):
    model, images, _ = plugged(name, 3)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [True, True, False]])
    embedding = model(images, torch.randn(4, 3, 32), present)
    loss = Criterion()([(model.neck(embedding), embedding, None)], torch.tensor([0, 0, 1, 1]))["total"]
    loss.backward()
    unused = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert unused <= {"backbone.classifier.weight", "backbone.classifier.bias"}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_training_separates_two_identities():
    model, images, _ = plugged("library map", 2, text_modulation=False)
    pid = torch.tensor([0, 0, 1, 1])
    images = images * 0.5 + pid[:, None, None, None, None]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        embedding = model(images)
        loss = Criterion()([(model.neck(embedding), embedding, None)], pid)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", DINO)
def test_a_vit_by_hand_is_the_tower_of_the_zoo(name):
    """Class token first, registers left out, patches row by row: the same numbers as `create_model` gives."""
    patch, prefix = DINO[name]
    size = (4 * patch, 2 * patch)
    args = {"image_tower": name, "img_size": size, "embed_dim": None, "text_tower": None}
    model = nextreid.create_model("next", **args, image_tower_args={"depth": 1}).eval()
    backbone = vit(name, size, depth=1).eval()
    assert backbone.num_prefix_tokens == prefix
    backbone.load_state_dict(model.image_tower[0].trunk.state_dict())
    head = NEXTHead(backbone.num_features, num_tokens=8, text_modulation=False).eval()
    head.load_state_dict(model.head.state_dict())
    images = torch.randn(2, 3, 3, *size)
    with torch.no_grad():
        cls, tokens = (x.unflatten(0, (2, 3)) for x in of_vit(backbone, images.flatten(0, 1)))
        torch.testing.assert_close(head(cls, tokens), model(images))


def test_maps_become_tokens_row_by_row():
    images = torch.randn(2, 3, 128, 64)
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=(128, 64), **SWIN).eval()
    resnet = timm.create_model("resnet10t", num_classes=0).eval()
    with torch.no_grad():
        for backbone, split, at in ((swin, of_map_channels_last, (2, 1)), (resnet, of_map, (..., 2, 1))):
            tokens, features = split(backbone, images)[1], backbone.forward_features(images)
            assert tokens.shape == (2, 4 * 2, backbone.num_features)
            assert torch.equal(tokens[:, 2 * 2 + 1], features[(slice(None), *at)])


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3.lvd1689m"])
def test_next_on_dinov3_builds_without_network_and_text(name, monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = nextreid.create_model("next", image_tower=name, text_tower=None, img_size=(64, 32), num_classes=4).eval()
    assert model.text_tower is None and not model.uses_text
    assert model.image_tower.grid_size == (4, 2) and len(model.image_tower[0].trunk.blocks) == 12
    out = model(torch.randn(2, 3, 3, 64, 32), present=torch.tensor([[True, False, True]] * 2))
    assert out.embedding.shape == (2, 4 * 3 * 512) and out.heads[0].logits.shape == (2, 4)
    assert not any(".modulation." in key for key in model.state_dict())
