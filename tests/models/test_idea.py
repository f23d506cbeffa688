"""IDEA: equal to its authors' code; captions, prompts and missing modalities."""

import pytest
import torch
from goldens import Golden, silence
from zoo import CAPTIONS, PRESENT, random_images, small

from nextreid.engine.exporter import _Embedding
from nextreid.losses import Criterion


@pytest.fixture(scope="module")
def golden():
    return Golden("idea-RGBNT201")


def captions_of(golden, model):
    """The golden's captions without the prefixes, which are ours to write."""
    for row in golden.captions:
        assert [text.startswith(prefix) for text, prefix in zip(row, model.prefixes, strict=True)] == [True] * 3
    return [[text.removeprefix(p) for text, p in zip(row, model.prefixes, strict=True)] for row in golden.captions]


@pytest.mark.slow
@torch.no_grad()
def test_the_authors_features(golden):
    model = golden.model("idea").eval()
    images, captions = golden.images(), captions_of(golden, model)
    ids = model._tokenize([prefix + text for row in captions for prefix, text in zip(model.prefixes, row, strict=True)])
    assert torch.equal(ids, golden.tensor("input.tokens").flatten(0, 1)[:, : ids.shape[1]])
    found = model.forward_features(images, captions, None, golden.camid)
    golden.close("embedding", model.pool(found))
    golden.close("text_feature", found["text"])
    for m, name in enumerate(("RGB", "NIR", "TIR")):
        golden.close(f"V_{name}", found["cls"][:, m])
        golden.close(f"T_{name}", found["inverted"][:, m])
    ours = {"inverse": "inverse", "raw_offsets": "offsets", "sampling_xy": "positions"}
    for name, part in {**ours, "visual": "visual", "textual": "textual"}.items():
        golden.close(name, found[part])
    model.missing = "zeros"
    for name, present in {"n": [True, False, True], "rt": [False, True, False]}.items():
        out = model(images, captions, torch.tensor([present] * 2), golden.camid)
        golden.close(f"embedding_missing_{name}", out.embedding)


@pytest.mark.slow
@torch.no_grad()
def test_the_authors_training(golden):
    model = silence(golden.model("idea")).train()
    captions = captions_of(golden, model)
    out = model(golden.images("training"), [captions[i] for i in (0, 1, 1, 0)], None, golden.training_camid)
    for i, head in enumerate((*out.heads[2:], *out.heads[:2])):
        golden.close(f"train.{2 * i}", head.logits, 1e-4)
        golden.close(f"train.{2 * i + 1}", head.feature, 1e-4)
        golden.close(f"train.term{i}", Criterion()([head], golden.training_pid)["total"], 1e-4)
    golden.close("train.loss", Criterion()(out.heads, golden.training_pid)["total"], 1e-4)


def test_a_caption_stands_behind_its_prefix(golden):
    model = small("idea_tiny")
    given = [[text.removeprefix(p) for text, p in zip(row, model.prefixes, strict=True)] for row in golden.captions]
    assert [
        [prefix + text for prefix, text in zip(model.prefixes, row, strict=True)] for row in given
    ] == golden.captions


def test_the_prefix_of_other_datasets_and_modalities():
    model = small("idea_tiny", modalities=["rgb", "event"], object_type="vehicle", num_prompts=1)
    assert model.prefixes == [
        "An image of a X vehicle in the visible spectrum, capturing natural colors and fine details: ",
        "An image of a X vehicle in the event spectrum: ",
    ]
    assert (
        small("idea_tiny", clauses="short").prefixes[2] == "An image of a X X person in the thermal infrared spectrum: "
    )


@torch.no_grad()
def test_text_features_are_a_mean_over_the_end_and_the_learned_words():
    """Every text alone and uncut, one word after the other, against the batch of distinct texts."""
    model = small("idea_tiny").double().eval()
    tower, words = model.text_tower, model.text_prompt
    found = model.prepare_text(CAPTIONS)
    for b, row in enumerate(CAPTIONS):
        for m, caption in enumerate(row):
            said = caption if isinstance(caption, str) else " ".join(caption or ())
            ids = tower.tokenizer.ids(model.prefixes[m] + said)
            at = [i for i in range(len(ids)) if ids[i] == tower.tokenizer.ids("X")[1]][: len(words)]
            x = tower.transformer.token_embedding(torch.tensor([ids]))
            x[0, at] += words
            x = x + tower.transformer.positional_embedding[: len(ids)]
            x = tower.transformer.transformer(x, attn_mask=tower.transformer.attn_mask[: len(ids), : len(ids)])
            x = tower.transformer.ln_final(x)[0] @ tower.transformer.text_projection
            torch.testing.assert_close(found[b, m], x[[len(ids) - 1, *at]].mean(0))
    torch.testing.assert_close(model.no_text()[0], model.prepare_text([[None] * 3])[0])


def test_long_captions_are_cut_and_a_warning_says_so(caplog):
    model = small("idea_tiny")
    long = "A red coat and a bag. " * 30
    ids = model._tokenize([long, "short"])
    assert ids.shape == (2, 77) and ids[0, -1] == model.text_tower.tokenizer.ids("a")[-1]
    model._tokenize([long])
    assert caplog.text.count("cut") == 1


def test_no_captions_are_captions_that_are_all_absent():
    model = small("idea_tiny").eval()
    images = random_images(model)
    torch.testing.assert_close(model(images), model(images, [[None] * 3] * 3))
    assert not torch.allclose(model(images), model(images, CAPTIONS), atol=1e-3)


def test_absent_modalities_are_left_out_or_images_of_zeros():
    model = small("idea_tiny", num_cameras=2, num_classes=3).eval()
    images, camid = random_images(model), torch.tensor([0, 1, -1])
    out = model(images, CAPTIONS, PRESENT, camid)
    for part in ("visual", "textual"):
        assert torch.equal(out.features[part].unflatten(1, (3, -1)).abs().sum(-1) > 0, PRESENT)
    captions = [
        [c if there else None for c, there in zip(*pair, strict=True)] for pair in zip(CAPTIONS, PRESENT, strict=True)
    ]
    torch.testing.assert_close(model(images, captions, PRESENT, camid).embedding, out.embedding)  # theirs are no matter
    model.missing = "zeros"
    blank = images.masked_fill(~PRESENT[..., None, None, None], 0)
    expected = model(blank, CAPTIONS, None, camid).embedding
    torch.testing.assert_close(model(images, CAPTIONS, PRESENT, camid).embedding, expected)
    encoded, text = model.encode_images(images, None, camid), model.prepare_text(CAPTIONS)
    torch.testing.assert_close(model.pool(model.forward_tokens(encoded, text, PRESENT)), expected)


def test_each_modality_may_have_classifiers():
    model = small("idea_tiny", num_classes=3, classifier="modality").eval()
    out = model(random_images(model), present=PRESENT)
    parts = [out.features[name][:, m] for name in ("cls", "inverted") for m in range(3)]
    assert [torch.equal(head.feature, part) for head, part in zip(out.heads[2:], parts, strict=True)] == [True] * 6
    assert all(torch.equal(head.present, PRESENT[:, i % 3]) for i, head in enumerate(out.heads[2:]))


def test_learned_words_learn_through_the_frozen_tower():
    model = small("idea_tiny", num_classes=3)
    model(random_images(model), CAPTIONS).embedding.square().sum().backward()
    assert model.text_prompt.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.text_tower.parameters())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"text_tower": None}, "IDEA makes tokens of captions and needs a text tower"),
        ({"clauses": "none"}, "unknown clauses 'none'; allowed: long, short"),
        ({"num_prompts": 0}, "num_prompts must be 1 to 16, got 0"),
        ({"image_tower": "swin_tiny_patch4_window7_224", "image_tower_args": {}, "img_size": (64, 32)}, "part by part"),
    ],
)
def test_settings_that_do_not_exist_are_rejected(setting, message):
    with pytest.raises(ValueError, match=message):
        model = small("idea_tiny", **setting)
        model(random_images(model))


@torch.no_grad()
def test_what_is_exported_without_captions_needs_no_text_tower():
    model = small("idea_tiny").eval()
    bare, images = _Embedding(model, normalize=False), random_images(model)
    assert bare.model.text_tower is None
    torch.testing.assert_close(bare(images, PRESENT), model(images, present=PRESENT))
