"""EDITOR: the authors' own numbers, and what it keeps."""

import re

import pytest
import torch
from goldens import Golden, silence
from zoo import random_images, small

import nextreid
from nextreid.layers.token_selection import count_bright
from nextreid.losses import Criterion
from nextreid.models._authors import build_from_authors, get_authors


@pytest.fixture(scope="module")
def golden():
    return Golden("editor-RGBNT201")


@pytest.mark.slow
def test_the_authors_features(golden):
    model = golden.model("editor").eval()
    with torch.no_grad():
        encoded = model.encode_images(golden.images(), camid=golden.camid)
        features = model.forward_tokens(encoded)
    counts = count_bright(encoded["brightness"], model.image_tower.grid_size)
    assert torch.equal(counts, golden.tensor("positive_counts").long())
    for name, ours in (("frequency_mask", "bright_mask"), ("attention_mask", "attention_mask"), ("mask", "mask")):
        assert torch.equal(features[ours], golden.tensor(name).bool()), name
    golden.close("rollout", features["rollout"])
    golden.close("cls", features["cls"])
    golden.close("tokens_mean", features["tokens"].mean(2))
    golden.close("fused_cls", features["fused_cls"])
    golden.close("fused_sum", features["fused_mean"] * features["mask"].sum(1)[:, None, None])
    golden.close("embedding", model.pool(features))


@pytest.mark.slow
def test_the_authors_training_outputs(golden):
    model, pid = silence(golden.model("editor", drop_path=0.0)).train(), golden.training_pid
    with torch.no_grad():
        out = model(golden.images("training"), camid=golden.training_camid)
        own = out.losses | model.identity_losses(out.features, pid)
    for i, head in enumerate(out.heads):
        golden.close(f"train.{2 * i}", head.logits, 1e-4)
        golden.close(f"train.{2 * i + 1}", head.feature, 1e-4)
    golden.close("train.loss_bcc", own["background"], 1e-4)
    golden.close("train.loss_ocfr", own["centers"], 1e-4)
    golden.close("train.4", own["background"] + own["centers"], 1e-4)
    golden.close("train.loss", Criterion(identity_weight=1.0)(out.heads, pid, own)["total"], 1e-4)
    assert torch.equal(model.centers[0], golden.state["FUSE_block.memory_cls.RGB_centers"])
    model.after_step(out.features, pid)
    golden.close("train.centers_after", torch.stack([part[[3, 9]] for part in model.centers]), 1e-4)


@pytest.mark.parametrize("method", ["editor", "editor_vehicle"])
def test_every_name_of_the_authors_has_its_place(golden, method):
    authors = get_authors(method)
    with torch.device("meta"):
        wanted = nextreid.create_model(authors.model, num_classes=171, num_cameras=4).state_dict()
    keys = [key for key in golden.facts["keys"] if method == "editor" or not key.startswith("AL_")]
    assert len(keys) == (222 if method == "editor" else 216)
    found = []
    for key in keys:
        rules = [match.expand(rule.ours) for rule in authors.rules if (match := re.fullmatch(rule.pattern, key))]
        dropped = [pattern for pattern in authors.dropped if re.fullmatch(pattern, key)]
        assert len(rules) + len(dropped) == 1, key
        found += rules
    assert sorted(found) == sorted(wanted)


def test_another_wavelet_is_rejected():
    names = ("DWT.h1_row", "DWT.h0_col")
    state = {f"FREQ_INDEX.{name}": torch.tensor([0.5**0.5] * 2).view(1, 1, 1, 2) for name in names}
    state |= {"FUSE_HEAD.weight": torch.zeros(5, 6)}
    with pytest.raises(ValueError, match=r"FREQ_INDEX\.DWT\.h1_row is no Haar filter"):
        build_from_authors("editor", state)


def test_discarded_patches_and_absent_modalities_have_no_part():
    model = small("editor_tiny", img_size=(64, 32)).eval()
    images = random_images(model)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    encoded = model.encode_images(images)
    features = model.forward_tokens(encoded, present=present)
    assert 3 <= features["mask"].sum(1).min() < features["mask"].sum(1).max() <= 3 * 3 + 3 < 32
    assert not features["attention_mask"][~present].any()
    gone = ~(features["mask"][:, None] & present[..., None])
    changed = encoded | {"tokens": encoded["tokens"].masked_fill(gone[..., None], 1e3)}
    again = model.forward_tokens(changed, present=present)
    torch.testing.assert_close(model.pool(again), model.pool(features))


@pytest.mark.parametrize("classifier", ["joint", "modality"])
def test_heads_and_necks(classifier):
    model = small("editor_tiny", num_classes=4, classifier=classifier).eval()
    out = model(random_images(model))
    assert torch.equal(out.heads[0].feature, out.embedding)
    rest = torch.cat([head.feature for head in out.heads[1:]], 1)
    assert torch.equal(rest, out.features["cls"].flatten(1))
    assert len(model.necks) == 2 and len(out.heads) == (2 if classifier == "joint" else 4)
    assert all(neck.norm.bias.requires_grad for neck in model.necks)


def test_centers_follow_the_batches_and_take_no_gradient():
    model = small("editor_tiny", num_classes=3)
    present = torch.ones(4, 3, dtype=torch.bool)
    present[0, 1] = False
    out, pid = model(random_images(model, 4), present=present), torch.tensor([0, 2, 0, 2])
    unit = torch.nn.functional.normalize(out.features["own_cls"], dim=-1)
    means = torch.stack([unit[[0, 2], 0].mean(0), unit[2, 1], unit[[0, 2], 2].mean(0)]).detach()
    loss = model.identity_losses(out.features, pid)["centers"]
    expected = 0
    for m in range(3):
        moved = {0: 0.8 * means[m], 2: 0.8 * unit[[1, 3], m].mean(0).detach()}
        rows = [i for i in range(4) if present[i, m]]
        expected += sum((unit[i, m] - moved[int(pid[i])]).square().mean() for i in rows) / len(rows)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not any(part.any() for part in model.centers) and all(part.grad is None for part in model.centers)
    model.after_step(out.features, pid)
    found = torch.stack(list(model.centers))
    torch.testing.assert_close(found[:, 0], 0.8 * means)
    assert not found[:, 1].any()
    model.reset_classifier(0)
    assert "centers.0" not in model.state_dict()


def test_a_tower_without_a_class_token_and_an_unknown_classifier_are_named():
    with pytest.raises(ValueError, match="classifier must be one of joint, modality"):
        small("editor_tiny", classifier="direct")
    with pytest.raises(ValueError, match="EDITOR needs a class token"):
        small("editor_tiny", image_tower="vit_base_patch16_siglip_224", image_tower_args={"depth": 1})
