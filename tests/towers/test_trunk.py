"""Networks of every kind as towers, against timm's own features."""

import pytest
import torch

from nextreid.towers import ImageTower, ImageTowers


@pytest.mark.parametrize(
    ("name", "args", "grid"),
    [
        ("resnet10t", {"channels": [8, 8, 12, 16]}, (2, 1)),
        ("resnet10t", {"channels": [8, 8, 12, 16], "output_stride": 16}, (4, 2)),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 12, 16]}, (2, 1)),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}, (2, 1)),
        ("mobilenetv4_conv_small_050", {}, (2, 1)),
    ],
)
def test_a_map_is_tokens_row_by_row_and_pooled_as_the_network_pools(name, args, grid):
    tower = ImageTower(name, (64, 32), None, tower_args=args).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        cls, tokens = tower(images)
        last, maps = tower.trunk.forward_intermediates(images, indices=1, output_fmt="NCHW")
        pooled = tower.trunk.forward_head(last, pre_logits=True)
    assert tower.grid_size == maps[0].shape[-2:] == grid and tower.patch_size == (64 // grid[0], 32 // grid[1])
    if name.startswith("mobilenetv4"):  # its head is wider than its map
        pooled = maps[0].mean((2, 3))
    torch.testing.assert_close(cls, pooled)
    at = maps[0][:, :, grid[0] - 1, 0]
    if name.startswith("swin"):
        at = tower.trunk.norm(at)
    if name.startswith("convnext"):  # the norm behind the pooling is each token's too
        at = tower.trunk.head.norm(at[..., None, None]).flatten(1)
    torch.testing.assert_close(tokens[:, (grid[0] - 1) * grid[1]], at)


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_tokens_of_a_stage(name):
    tower = ImageTower(name, (64, 32), None, tower_args={"stage": 2}).eval()
    whole = ImageTower(name, (64, 32), None).eval()
    kept = tower.trunk.state_dict()
    assert 0 < len(kept) < len(whole.trunk.state_dict())
    whole.trunk.load_state_dict(kept, strict=False)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        cls, tokens = tower(images)
        (expected,) = whole.trunk.forward_intermediates(images, [2], intermediates_only=True, output_fmt="NCHW")
    torch.testing.assert_close(tokens, expected.flatten(2).mT)
    torch.testing.assert_close(cls, expected.mean((2, 3)))


def test_attention_pooling_gives_the_class_token():
    tower = ImageTower(
        "vit_base_patch16_siglip_224", (32, 32), None, tower_args={"embed_dim": 32, "depth": 1, "num_heads": 2}
    )
    images = torch.randn(2, 3, 32, 32)
    cls, tokens = tower(images)
    torch.testing.assert_close(cls, tower.trunk(images))
    torch.testing.assert_close(tokens, tower.trunk.forward_features(images))


@pytest.mark.parametrize("shared", [True, False])
def test_absent_images_have_no_part_in_the_statistics_of_a_batch_norm(shared):
    def towers():
        torch.manual_seed(0)
        return ImageTowers("resnet10t", (64, 32), ("rgb", "nir"), 8, shared, tower_args={"channels": [8, 8, 12, 16]})

    images, present = torch.randn(3, 2, 3, 64, 32), torch.tensor([[True, False], [True, True], [True, True]])
    ours, other = towers(), towers()
    cls, tokens = ours(images, present)
    images[0, 1] = torch.inf
    assert torch.equal(other(images, present)[0], cls)
    assert not cls[0, 1].any() and not tokens[0, 1].any()
    if shared:
        alone = towers()[0]
        expected = alone(images[present])[0]
        torch.testing.assert_close(cls[present], expected)
        assert torch.equal(ours[0].trunk.bn1.running_mean, alone.trunk.bn1.running_mean)
    else:
        before = [value.clone() for value in ours[1].trunk.state_dict().values()]
        ours(images, torch.tensor([[True, False]] * 3))
        assert all(map(torch.equal, ours[1].trunk.state_dict().values(), before)) and ours[1].training
