"""Files of timm's networks, in its names and by order, into towers."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from nextreid.models import convert_timm, create_model
from nextreid.towers import ImageTower, load_timm_weights

KINDS = {
    "resnet10t": {"channels": [8, 8, 12, 16]},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 12, 16]},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2},
}


def network(name, size=(64, 32), **kwargs):
    """A network with its classifier, and statistics that are not the initial ones."""
    torch.manual_seed(1)
    sized = {"img_size": size} if "patch16" in name or "patch4" in name else {}
    model = timm.create_model(name, **sized, **KINDS[name], **kwargs).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1.5)
    return model


def renamed(state):
    """Other names, without a batch norm's counters, in the same order."""
    words = (key.rpartition(".")[2] for key in state)
    pairs = zip(words, state.items(), strict=True)
    return {f"part{i}.{word}": v for i, (word, (key, v)) in enumerate(pairs) if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("by_order", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_files_network_is_the_tower(name, by_order):
    source = network(name, (64, 64))
    towers = [ImageTower(name, (64, 64), 6, tower_args=KINDS[name]).eval() for _ in range(2)]
    projection = towers[0].proj.weight.clone()
    state = source.state_dict()
    found = load_timm_weights(renamed(state) if by_order else state, towers, by_order)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = source.forward_head(source.forward_features(images), pre_logits=True)
        for tower in towers:
            torch.testing.assert_close(tower(images)[0], expected @ tower.proj.weight.T)
    assert torch.equal(towers[0].proj.weight, projection)
    assert found.naming == ("other" if by_order else "timm") and found.image > 20 and found.text == 0
    assert {key.rpartition(".")[2] for key in found.left_out} == {"weight", "bias"} and len(found.left_out) == 2


def test_a_stage_takes_its_part_of_the_file():
    source = network("resnet10t")
    tower = ImageTower("resnet10t", (64, 32), None, tower_args={**KINDS["resnet10t"], "stage": 2}).eval()
    found = load_timm_weights(source.state_dict(), [tower])
    assert any(key.startswith("layer4.") for key in found.left_out)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        (expected,) = source.forward_intermediates(images, [2], intermediates_only=True)
        torch.testing.assert_close(tower(images)[1], expected.flatten(2).mT)


@pytest.mark.parametrize(
    ("change", "by_order", "named"),
    [
        (lambda s: s | {"conv1.0.weight": torch.zeros(9, 3, 3, 3)}, False, r"conv1.0.weight is \(9, 3, 3, 3\)"),
        (lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, False, r"1 missing: bn1\.bias"),
        (lambda s: s | {"other": torch.zeros(1)}, False, "no place for: other"),
        (lambda s: dict(reversed(s.items())), True, "the order is not that of timm's resnet10t: tensor 1 is fc.bias"),
        (lambda s: s | {"z.weight": torch.zeros(1)}, True, "z.weight are left over"),
        (lambda s: dict(list(s.items())[:9]), True, r"67 missing: bn1.*layer4"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(change, by_order, named):
    tower = ImageTower("resnet10t", (64, 32), 6, tower_args=KINDS["resnet10t"])
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        load_timm_weights(change(network("resnet10t").state_dict()), [tower], by_order)
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())


def test_a_file_becomes_a_checkpoint_folder(tmp_path):
    source = network("resnet10t")
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    arguments = {"image_tower": "resnet10t", "image_tower_args": KINDS["resnet10t"], "img_size": (64, 32)}
    done = convert_timm(tmp_path / "w.safetensors", "baseline", tmp_path / "out", embed_dim=None, **arguments)
    model = create_model(f"local-dir:{done.folder}").eval()
    assert model.pretrained_cfg.mean == (0.485, 0.456, 0.406) and "w.safetensors" in model.pretrained_cfg.notes
    images = torch.randn(3, 3, 64, 32)  # of one sample in three modalities
    with torch.no_grad():
        expected = source.forward_head(source.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model(images[None]), expected.flatten()[None])
    with pytest.raises(ValueError, match="leave it out by text_tower=None"):
        convert_timm(tmp_path / "w.safetensors", "next_tiny", tmp_path / "other", **arguments)
