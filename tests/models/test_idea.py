"""IDEA: equal to its authors' code; captions, prompts and missing modalities."""

import pytest
import torch
from goldens import Golden, silence
from zoo import CAPTIONS, PRESENT, random_images, small

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
