"""Towers against open_clip and timm themselves, and the laws of cameras, sizes and text."""

import json
import re
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F

from nextreid.towers import (
    CONTEXT,
    ImageTower,
    ImageTowers,
    TextTower,
    clip_weights,
    load_clip_weights,
    load_pretrained_clip,
    pack_sentences,
)

TINY_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY_CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
CAPTIONS = [
    "A man walking.",
    "An adult female seen from the back during daytime in dim lighting. She is wearing a white t-shirt with shorts.",
    'Citroën 长安, 7 e.g. "quotes" & more',
]


def tiny_tower(**kwargs):
    torch.manual_seed(0)
    settings = {"img_size": (32, 16), "embed_dim": 24, "tower_args": TINY_VIT, **kwargs}
    return ImageTower("vit_tiny_patch16_224", **settings).eval()


@pytest.fixture
def tiny_clip_config(tmp_path):
    path = tmp_path / "nextreid-test-clip.json"
    path.write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(path)
    return "nextreid-test-clip"


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu"])
def test_towers_are_clip(name):
    """The proof: with CLIP's weights, 224x224 images and texts give open_clip's own features."""
    torch.manual_seed(0)
    clip = open_clip.create_model(name).eval()
    image = ImageTower("vit_base_patch16_clip_quickgelu_224", (224, 224)).eval()
    text = TextTower(name).eval()
    load_clip_weights(clip.state_dict(), image, text)
    images = torch.randn(2, 3, 224, 224)
    tokens = open_clip.get_tokenizer(name)(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(image(images)[0], clip.encode_image(images), rtol=0, atol=1e-5)
        expected = clip.encode_text(tokens)
        torch.testing.assert_close(text(tokens), expected, rtol=0, atol=1e-5)
        encoded = text.encode([[caption] for caption in CAPTIONS])
    assert torch.equal(text.tokenize(CAPTIONS), tokens)
    torch.testing.assert_close(encoded, F.normalize(expected, dim=-1), rtol=0, atol=1e-5)


def test_patches_are_clips_own_tokens_projected(tiny_clip_config):
    clip = open_clip.create_model(tiny_clip_config, output_dict=True).eval()
    clip.visual.output_tokens = True
    tower = ImageTower("vit_base_patch16_clip_quickgelu_224", (224, 224), embed_dim=32, tower_args={"depth": 2}).eval()
    load_clip_weights(clip.state_dict(), tower, None)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pooled, tokens = clip.visual(images)
        cls, patches = tower(images)
    torch.testing.assert_close(cls, pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(patches, tokens @ clip.visual.proj, rtol=0, atol=1e-5)


def test_pretrained_clip_fills_both_towers_at_another_size(tiny_clip_config, monkeypatch):
    source = open_clip.create_model(tiny_clip_config)
    asked = {}

    def fetch(name, pretrained, cache_dir):
        asked.update(name=name, tag=pretrained, cache_dir=cache_dir)
        return source

    monkeypatch.setattr(open_clip, "create_model", fetch)
    image = ImageTower("vit_base_patch16_clip_quickgelu_224", (64, 32), 32, num_cameras=3, tower_args={"depth": 2})
    text = TextTower({"width": 64, "heads": 2, "layers": 2}, 32)
    cameras = image.camera.clone()
    monkeypatch.setattr(clip_weights, "fetch_file", lambda repo, file, cache: Path(cache, repo, file))
    load_pretrained_clip("ViT-B-16-quickgelu", "openai", image, text, "somewhere")
    file = Path("somewhere/timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors")
    assert asked == {"name": "ViT-B-16-quickgelu", "tag": str(file), "cache_dir": "somewhere"}
    assert torch.equal(image.camera, cameras)
    assert torch.equal(image.proj.weight, source.visual.proj.T)
    assert torch.equal(text.transformer.token_embedding.weight, source.token_embedding.weight)
    grid = source.visual.positional_embedding[1:].detach().view(1, 14, 14, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, (4, 2), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 8, -1)
    torch.testing.assert_close(image.trunk.pos_embed[:, 1:], resized)


def test_clip_weights_that_do_not_fit_are_named(tiny_clip_config):
    clip = open_clip.create_model(tiny_clip_config)
    with pytest.raises(ValueError, match=r"missing .*blocks\.2"):
        load_clip_weights(
            clip.state_dict(),
            ImageTower("vit_base_patch16_clip_quickgelu_224", (64, 32), 32, tower_args={"depth": 3}),
            None,
        )
    with pytest.raises(ValueError, match="shapes"):
        load_clip_weights(clip.state_dict(), None, TextTower({"width": 64, "heads": 2, "layers": 2}, 16))


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("vit_small_patch16_dinov3", (64, 32), {"depth": 1}),
        ("vit_small_patch14_reg4_dinov2", (56, 28), {"depth": 1}),
        ("vit_base_patch16_siglip_224", (32, 64), {"depth": 1}),
        ("eva02_tiny_patch14_224", (28, 56), {"depth": 1}),
    ],
)
def test_any_timm_vit_at_any_size(name, size, args):
    tower = ImageTower(name, size, embed_dim=24, tower_args=args).eval()
    patch = tower.patch_size[0]
    cls, patches = tower(torch.randn(2, 3, *size))
    assert tower.grid_size == (size[0] // patch, size[1] // patch)
    assert cls.shape == (2, 24) and patches.shape == (2, tower.num_tokens, 24)
    assert tower.num_tokens == size[0] * size[1] // patch**2


def test_tokens_are_timms_own_after_the_final_norm():
    tower = tiny_tower(embed_dim=None)
    twin = timm.create_model("vit_tiny_patch16_224", img_size=(32, 16), num_classes=0, **TINY_VIT).eval()
    twin.load_state_dict(tower.trunk.state_dict())
    images = torch.randn(2, 3, 32, 16)
    cls, patches = tower(images)
    expected = twin.forward_features(images)
    assert torch.equal(cls, expected[:, 0]) and torch.equal(patches, expected[:, 1:])


def test_camera_embedding_is_added_to_the_class_token():
    tower = tiny_tower(num_cameras=3, embed_dim=None)
    images = torch.randn(2, 3, 32, 16)
    cls, _ = tower(images, torch.tensor([2, 0]))
    x = tower.trunk.patch_embed(images)
    start = (tower.trunk.cls_token + tower.camera[[2, 0]][:, None]).expand(2, -1, -1)
    x = torch.cat([start, x], 1) + tower.trunk.pos_embed
    expected = tower.trunk.norm(tower.trunk.blocks(tower.trunk.norm_pre(x)))[:, 0]
    torch.testing.assert_close(cls, expected)


def test_an_unknown_camera_is_the_mean_camera():
    tower = tiny_tower(num_cameras=3)
    images = torch.randn(2, 3, 32, 16)
    unknown = tower(images, torch.tensor([-1, 1]))[0]
    assert torch.equal(tower(images)[0][0], unknown[0])
    assert not torch.equal(tower(images)[0][1], unknown[1])
    with torch.no_grad():
        tower.camera.copy_(tower.camera.mean(0).expand_as(tower.camera))
    torch.testing.assert_close(tower(images)[0], tower(images, torch.tensor([0, 2]))[0])
    with pytest.raises(ValueError, match="camera 3 is out of range for 3"):
        tower(images, torch.tensor([3, 0]))


@pytest.mark.parametrize(
    ("name", "kwargs", "named"),
    [
        ("vit_giga", {}, "timm has no model named 'vit_giga'"),
        ("coat_tiny", {"img_size": (64, 32)}, "coat_tiny.*does not build as a tower"),
        ("resnet18", {"num_cameras": 2, "img_size": (64, 32)}, "resnet18.*none that it reads"),
        ("eva02_tiny_patch14_224", {"img_size": (28, 28), "tower_args": {"stage": 1}}, "fewer blocks by depth"),
        ("vit_tiny_patch16_224", {"img_size": (250, 128)}, r"try \(256, 128\)"),
        (
            "vit_base_patch16_siglip_224",
            {"img_size": (32, 32), "num_cameras": 2, "tower_args": {"depth": 1}},
            "class token",
        ),
        ("vit_tiny_patch16_224", {"tower_args": {"depht": 2}}, "depht"),
    ],
)
def test_bad_image_towers_are_named(name, kwargs, named):
    with pytest.raises(ValueError, match=named):
        ImageTower(name, **kwargs)


def test_wrong_image_size_is_named():
    with pytest.raises(ValueError, match=r"16x32 \(HxW\), this model takes 32x16"):
        tiny_tower()(torch.randn(1, 3, 16, 32))


@pytest.fixture(scope="module")
def text_tower():
    torch.manual_seed(0)
    return TextTower({"width": 32, "heads": 2, "layers": 1}, 16)


def test_text_is_frozen_cached_and_forgotten_with_its_weights(text_tower):
    assert not any(p.requires_grad for p in text_tower.parameters())
    assert not text_tower.train().training
    first = text_tower.encode([["a b"], [], ["c d", "e"]])
    assert torch.equal(first[1], torch.zeros(16))
    torch.testing.assert_close(first.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))
    calls = []
    hook = text_tower.transformer.ln_final.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(text_tower.encode([["a b"], [], ["c d", "e"]]), first) and not calls
    state = {k: v + 0.1 * torch.randn_like(v) for k, v in text_tower.state_dict().items()}
    text_tower.load_state_dict(state)
    assert not torch.allclose(text_tower.encode([["a b"]])[0], first[0])
    text_tower.double()
    assert text_tower.encode([["a b"]]).dtype == torch.float64
    text_tower.float()
    hook.remove()
    assert len(calls) == 2


def test_a_text_is_encoded_the_same_to_the_last_bit_in_any_company(text_tower):
    words = "a man wearing dark jacket with trousers and boots seen from behind at night in dim light".split()
    texts = [" ".join(words[: 1 + i % 16] * (1 + i // 16)) for i in range(48)]
    text_tower.clear_cache()
    together = text_tower.encode([[t] for t in texts])
    for start in (0, 7, 30):
        text_tower.clear_cache()
        assert torch.equal(text_tower.encode([[t] for t in texts[start:]]), together[start:])
    for i in (0, 20, 47):
        text_tower.clear_cache()
        assert torch.equal(text_tower.encode([[texts[i]]])[0], together[i])


def test_several_windows_are_the_unit_mean_of_unit_windows(text_tower):
    one, two, both = text_tower.encode([["first part"], ["second part"], ["first part", "second part"]])
    torch.testing.assert_close(both, F.normalize((one + two) / 2, dim=0))


def test_cutting_the_padding_changes_nothing(text_tower):
    tokens = text_tower.tokenize(["short", "a much longer text with many more words in it"])
    alone = torch.cat([text_tower(row[None]) for row in tokens])
    torch.testing.assert_close(alone, text_tower(tokens), rtol=1e-5, atol=1e-6)


def test_a_text_over_the_window_is_never_cut_silently(text_tower):
    with pytest.raises(ValueError, match="does not fit the tower's window of 77"):
        text_tower.encode([["word " * 100]])


@pytest.mark.parametrize(
    ("name", "dim", "named"),
    [
        ("ViT-Q-99", None, "open_clip has no model"),
        ("ViT-B-16-quickgelu", 64, "gives 512 features but embed_dim=64"),
        ("xlm-roberta-base-ViT-B-32", None, "not a transformer of open_clip"),
        (
            {"width": 32, "heads": 2, "layers": 1, "context_length": 99},
            16,
            "context_length must be a whole number of 8 to 77; got 99",
        ),
        ({"width": 32, "headz": 2}, 16, "headz"),
        ({"width": 32, "heads": 2, "layers": 1, "vocab_size": 513}, 16, "vocab_size must be .* 514 to 49408; got 513"),
        ({"width": 32, "heads": 2, "layers": 1, "vocab_size": 50_000}, 16, "vocab_size must be .*; got 50000"),
    ],
)
def test_bad_text_towers_are_named(name, dim, named):
    with pytest.raises(ValueError, match=named):
        TextTower(name, dim)


@pytest.mark.parametrize("size", [514, 1_000, 24_576])
def test_a_smaller_vocabulary_is_clips_first_merges(size):
    """Against the naive loop: merge after merge in the order they were learned, over every word."""
    tower = TextTower({"width": 8, "heads": 2, "layers": 1, "vocab_size": size}, 8)
    clip = open_clip.SimpleTokenizer()
    pieces, merges = list(clip.encoder), list(clip.bpe_ranks)[: size - 514]
    for word in ("a", "wearing", "suitcase", "t-shirt.", "nighttime,", "zwq"):
        expected = []
        for part in re.findall(r"[a-z]+|[^a-z]+", word):
            split = [*part[:-1], part[-1] + "</w>"]
            for merge in merges:
                i = 0
                while i + 1 < len(split):
                    if (split[i], split[i + 1]) == merge:
                        split[i : i + 2] = ["".join(merge)]
                    i += 1
            expected += map(pieces.index, split)
        row = tower.tokenize([word])[0]
        assert row[: len(expected) + 2].tolist() == [size - 2, *expected, size - 1] and int(row.max()) == size - 1
        assert tower.count_tokens(word) == len(expected) + 2
    short = [CAPTIONS[0], CAPTIONS[2]]
    assert int(tower.tokenize(short).max()) < size
    alone = torch.cat([tower.encode([[caption]]) for caption in short])
    assert torch.equal(tower.encode([[caption] for caption in short]), alone) and alone.isfinite().all()


def test_packing_by_clip_tokens(text_tower):
    sentence = "He is wearing a dark jacket with dark trousers, paired with casual boots."
    windows = pack_sentences([sentence] * 9, text_tower.count_tokens)
    counts = [text_tower.count_tokens(w) for w in windows]
    assert " ".join(windows) == " ".join([sentence] * 9) and max(counts) <= CONTEXT
    assert len(windows) == 2


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "vit_tiny_patch16_224.no_such_tag"])
def test_timm_models_without_a_grid_of_tokens_are_named(name):
    with pytest.raises(ValueError, match=f"{name}.*does not build as a tower"):
        ImageTower(name, (64, 32), 32)


@pytest.mark.parametrize(
    "text", ["<end_of_text>", "<start_of_text>", "&lt;end_of_text&gt;", "<END_OF_TEXT>", "a<end_of_text>b"]
)
def test_special_tokens_in_a_caption_are_letters(text_tower, text):
    vocabulary = text_tower.vocab_size
    ids = text_tower.tokenize([f"A man. {text} He wears red."])[0].tolist()
    assert ids.count(vocabulary - 1) == 1 and ids.count(vocabulary - 2) == 1  # one end, one start
    red, blue = text_tower.encode([[f"A man. {text} He wears {color}."] for color in ("red", "blue")])
    assert not torch.equal(red, blue)


@pytest.mark.parametrize("shared", [True, False])
def test_a_plain_tower_runs_part_by_part(shared):
    towers = ImageTowers("vit_tiny_patch16_224", (64, 32), ("rgb", "nir"), 24, shared, tower_args={"depth": 2})
    images = torch.rand(3, 2, 3, 64, 32)
    tokens = towers.project(towers.norm(towers.run_blocks(towers.stem(images))))
    cls, patches = towers(images)
    assert towers.stem(images).shape == (3, 2, 1 + 8, 192)
    torch.testing.assert_close(tokens[:, :, 0], cls)
    torch.testing.assert_close(tokens[:, :, towers.num_prefix_tokens :], patches)


@pytest.mark.parametrize("scope", ["class", "all"])
def test_the_camera_embedding_is_added_within_its_scope(scope):
    tower = ImageTower(
        "vit_tiny_patch16_224", (64, 32), None, 3, 0.0, {"depth": 1}, camera_scope=scope, camera_scale=3.0
    ).eval()
    images, camid = torch.rand(2, 3, 64, 32), torch.tensor([2, -1])
    added = tower.stem(images, camid)
    with torch.no_grad():
        camera = 3 * torch.stack([tower.camera[2], tower.camera.mean(0)])
        tower.camera.zero_()
    plain = tower.stem(images, camid)
    plain[:, : 1 if scope == "class" else None] += camera[:, None]
    torch.testing.assert_close(added, plain)


def test_a_tower_that_is_not_plain_is_named_by_what_needs_its_parts():
    tower = ImageTower("eva02_tiny_patch14_224", (28, 28), tower_args={"depth": 1})
    with pytest.raises(ValueError, match=r"eva02_tiny_patch14_224.*vit_base_patch16_224"):
        tower.stem(torch.rand(1, 3, 28, 28))
