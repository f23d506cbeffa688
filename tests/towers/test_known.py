"""The table of known towers against timm and open_clip, and their CLIPs against open_clip's own features."""

import json
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F

import nextreid
from nextreid.towers import KNOWN_TOWERS, ImageTower, TextTower, load_clip_weights, tokenizer

every_tower = pytest.mark.parametrize("name", KNOWN_TOWERS)


@every_tower
def test_the_table_says_what_timm_and_open_clip_say(name):
    row, openai = KNOWN_TOWERS[name], KNOWN_TOWERS[name].tag == "openai"
    theirs = timm.get_pretrained_cfg(f"{row.image}.openai" if openai else row.image)
    assert theirs.has_weights and (tuple(theirs.mean), tuple(theirs.std)) == row.normalisation
    assert row.license == ("mit" if openai else theirs.license)  # timm's copy names its own license
    if row.text is None:
        assert row.tag is None and row.embed_dim is None
        return
    both, weights = open_clip.get_model_config(row.text), open_clip.get_pretrained_cfg(row.text, row.tag)
    assert (tuple(weights["mean"]), tuple(weights["std"])) == row.normalisation
    assert openai or both["vision_cfg"]["timm_model_name"] == row.image
    assert row.embed_dim == (None if both["vision_cfg"].get("timm_proj") == "none" else both["embed_dim"])


@every_tower
def test_a_name_is_a_tower_with_its_text_tower_and_its_images(name):
    row = KNOWN_TOWERS[name]
    with torch.device("meta"):
        model = nextreid.create_model("next", image_tower=name)
    assert model.model_args["image_tower"] == row.image and model.model_args["text_tower"] == row.text
    assert model.img_size == row.img_size and model.uses_text == (row.text is not None)
    assert model.text_tower is None or model.text_tower.embed_dim == model.embed_dim
    layout = model.image_tower[0].layout
    assert layout.stride == (row.stride, row.stride) and layout.pool == row.pool
    assert layout.prefix - row.registers in (0, 1)  # a class token
    assert all(abs(size - usual) < row.stride for size, usual in zip(row.img_size, (256, 128), strict=True))
    cfg = model.pretrained_cfg
    assert (cfg.mean, cfg.std) == row.normalisation
    assert cfg.clip == (row.text and (row.text, row.tag)) and cfg.timm == (row.text is None)
    assert f"{cfg.first_conv}.weight" in model.state_dict()


def test_what_is_given_wins_over_the_table():
    tiny = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    model = nextreid.create_model(
        "next", image_tower="siglip2_vitb16", text_tower=None, img_size=(64, 32), embed_dim=16, image_tower_args=tiny
    )
    assert model.text_tower is None and model.img_size == (64, 32) and model.embed_dim == 16
    model = nextreid.create_model("baseline_tiny", image_tower="dinov3_vits16", image_tower_args=tiny)
    assert model.image_tower[0].name == "vit_small_patch16_dinov3" and model.pretrained_cfg.mean == (
        0.485,
        0.456,
        0.406,
    )
    with pytest.raises(ValueError, match=r"no model named 'dinov3_vit_b16'\. Did you mean 'dinov3_vitb16'"):
        ImageTower("dinov3_vit_b16")


@pytest.fixture
def shallow(monkeypatch):
    """One block in every tower, open_clip's too, which has no argument for it."""
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: build(*args, **{"depth": 1, **kwargs}))


def _clip(tmp_path, tower, size, text, dim=24):
    vision = {"timm_model_name": tower, "timm_pool": "map", "timm_proj": "none" if "siglip" in tower else None}
    vision |= {"timm_pool": "token"} if "eva02" in tower else {}
    text = {"width": dim if "siglip" in tower else 32, "heads": 2, "layers": 1, **text}
    config = {"embed_dim": dim, "vision_cfg": {"image_size": size, **vision}, "text_cfg": text, "custom_text": True}
    (tmp_path / "test-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "test-clip.json")
    torch.manual_seed(0)
    return open_clip.create_model("test-clip").eval()


@pytest.mark.parametrize(
    ("tower", "size", "text"),
    [
        ("vit_pe_core_tiny_patch16_384", 384, {"context_length": 32, "vocab_size": 600}),
        ("eva02_base_patch16_clip_224", 224, {"vocab_size": 600}),
    ],
)
def test_clips_around_timm_towers_give_open_clips_features(tower, size, text, tmp_path, shallow):
    clip = _clip(tmp_path, tower, size, text)
    image, words = ImageTower(tower, (size, size), 24).eval(), TextTower("test-clip").eval()
    with torch.no_grad():
        clip.visual.trunk.head.bias.normal_()  # OpenAI's has none
    load_clip_weights(clip.state_dict(), image, words)
    images, tokens = torch.randn(2, 3, size, size), words.tokenize(["a man", "a woman in a red coat"])
    assert tokens.shape[1] == words.context_length == text.get("context_length", 77)
    with torch.no_grad():
        torch.testing.assert_close(image(images)[0], clip.encode_image(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(words(tokens), clip.encode_text(tokens), rtol=1e-4, atol=1e-5)
    assert len(words.windows("a man in a red coat, seen from the back at night. " * 3)) > (size == 224)  # 33 words


def test_siglips_text_is_read_at_the_last_place_with_its_own_tokenizer(tmp_path, monkeypatch, shallow):
    """A tokenizer that is fetched is played by one of whole words; the towers are SigLIP's in small."""
    words = {}

    def tokenize(text):
        return {"input_ids": [2 + words.setdefault(word, len(words)) for word in text.split()] + [1]}

    tokenize.pad_token_id = 0
    fetched = []
    played = SimpleNamespace(tokenizer=tokenize, clean_fn=lambda text: text.lower().replace(".", ""))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: fetched.append(name) or played)
    text = {"context_length": 12, "vocab_size": 600, "hf_tokenizer_name": "x", "no_causal_mask": True}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}, "proj_bias": True, "pool_type": "last"}
    text |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    clip = _clip(tmp_path, "vit_base_patch16_siglip_224", 224, text, 768)
    image, tower = ImageTower("vit_base_patch16_siglip_224", (224, 224), None).eval(), TextTower("test-clip").eval()
    assert not fetched  # a model builds without a network
    load_clip_weights(clip.state_dict(), image, tower)
    tokens = tower.tokenize(["A man.", "a man in a red coat"])
    assert tokens.tolist() == [[2, 3, 1] + [0] * 9, [2, 3, 4, 2, 5, 6, 1] + [0] * 5] and fetched == ["test-clip"]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(image(images)[0], clip.encode_image(images), rtol=1e-4, atol=1e-5)
        expected = clip.encode_text(tokens)
    torch.testing.assert_close(tower(tokens), expected)
    torch.testing.assert_close(tower.encode([["A man."], ["a man in a red coat"]]), F.normalize(expected, dim=-1))
    assert tower.windows(["a man in a red coat"] * 3) == ("a man in a red coat",) * 3  # of 7 tokens in a window of 12


def test_a_tokenizer_that_cannot_be_had_is_named(monkeypatch):
    for raised, expected in ((ImportError("transformers"), ImportError), (OSError("offline"), ConnectionError)):
        tokenizer._from_hub.cache_clear()
        monkeypatch.setattr(open_clip, "get_tokenizer", lambda name, error=raised: (_ for _ in ()).throw(error))
        with pytest.raises(expected, match="tokenizer of 'ViT-B-16-SigLIP2'"):
            tokenizer.HubTokenizer("ViT-B-16-SigLIP2").ids("a man")


def test_the_page_of_towers_is_the_table():
    page = (Path(__file__).parents[2] / "docs" / "towers.md").read_text(encoding="utf-8")
    words = {"token": "its own", "map": "attention pooling", "head": "mean and norm"}
    for name, row in KNOWN_TOWERS.items():
        text = f"`{row.text}`, `{row.tag}`" if row.text else "none"
        cells = (f"`{name}`", f"`{row.image}`", f"{row.stride} px", str(row.registers or "none"), words[row.pool], text)
        assert f"| {' | '.join(cells)} | {row.license} |" in page
