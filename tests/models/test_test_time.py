"""HTT and ProxyTTT as they are trained, before anything is learned at test."""

import pytest
import torch
from zoo import PRESENT, random_images, small

from nextreid.losses import identity_margin, modality_margin
from nextreid.towers import ImageTower, load_clip_weights


def test_htt_adds_its_margins():
    model, pid = small("htt_vit_b16", num_classes=2).eval(), torch.tensor([0, 1, 0])
    features = model.forward_features(random_images(model), present=PRESENT)
    losses = model.identity_losses({name: features[name] for name in model.loss_parts}, pid)
    cls = features["cls"]
    torch.testing.assert_close(losses["modality_margin"], 0.5 * modality_margin(cls, pid, 1.0, PRESENT))
    torch.testing.assert_close(losses["identity_margin"], 0.5 * identity_margin(cls, pid, 0.5, PRESENT))


@pytest.mark.parametrize(("direct", "heads"), [(True, 1), (False, 4)])
def test_proxyttt_has_proxies_of_each_modality_and_of_all(direct, heads):
    model, pid = small("proxyttt_tiny", num_classes=3, direct=direct), torch.tensor([0, 2, 0])
    assert len(model.head_widths) == heads
    assert model.proxies["all"].proxies.shape[:2] == (3, 3)
    assert [each.proxies.shape[:2] for each in model.proxies["each"]] == [(3, 1)] * 3
    features = model.forward_features(random_images(model), present=PRESENT)
    parts = {name: features[name].detach() for name in model.loss_parts}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.after_step(parts, pid)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {n for n in before if n.startswith("proxies.") and n.endswith((".proxies", ".followed"))}
    nir = model.proxies["each"][1].proxies != before["proxies.each.1.proxies"]
    assert nir[0].any() and not nir[1:].any()  # of the identities in the batch, 2 shows no nir
    model.reset_classifier(0)
    assert not list(model.proxies.parameters())


def test_a_tower_without_projection_takes_a_clip_without_its_own():
    settings = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    name = "vit_base_patch16_clip_quickgelu_224"
    whole, bare = (ImageTower(name, (32, 32), width, tower_args=settings) for width in (8, None))
    state = {key.removeprefix("trunk."): value for key, value in whole.state_dict().items()}
    state["head.weight"] = state.pop("proj.weight")
    found = load_clip_weights(state, bare, None)
    assert found.left_out == ("head.weight",)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in bare.state_dict().items())
