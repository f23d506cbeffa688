"""TOP-ReID: the authors' own numbers, and what its rounds and predictions are."""

import re

import pytest
import torch
from goldens import Golden, silence
from zoo import random_images, small

import nextreid
from nextreid.losses import Criterion
from nextreid.models._authors import get_authors

MISSING = {"r": 0, "n": 1, "t": 2}


@pytest.fixture(scope="module")
def golden():
    return Golden("topreid-RGBNT201")


@pytest.mark.slow
def test_the_authors_features(golden):
    model = golden.model("topreid").eval()
    rounds = []
    for layer in model.permutation.rounds:
        layer.register_forward_hook(lambda *args: rounds.append(args[-1]))
    with torch.no_grad():
        encoded = model.encode_images(golden.images(), camid=golden.camid)
        features = model.forward_tokens(encoded)
        tokens = torch.cat([encoded["cls"][:, :, None], encoded["tokens"]], 2)
        predicted = model.reconstruction(tokens)
        golden.close("embedding", model.pool(features))
        golden.close("cls", encoded["cls"])
        golden.close("tokens_mean", encoded["tokens"].mean(2))
        golden.close("last_token", encoded["tokens"][:, :, -1])
        golden.close("round1_cls", rounds[0])
        golden.close("round2_cls", rounds[1])
        for s, source in enumerate(model.modalities):
            for t, target in enumerate(model.modalities):
                if s != t:
                    golden.close(f"crm_{source}_to_{target}", predicted[:, s, t][:, [0, -1]])
        patterns = [name.removeprefix("embedding_missing_") for name in golden.names if "missing" in name]
        assert len(patterns) == 6
        for pattern in patterns:
            present = torch.ones(2, 3, dtype=torch.bool)
            present[:, [MISSING[letter] for letter in pattern]] = False
            ours = model.forward_tokens(encoded, present=present)
            golden.close(f"embedding_missing_{pattern}", model.pool(ours))


@pytest.mark.slow
def test_the_authors_training_outputs(golden):
    model = silence(golden.model("topreid", drop_path=0.0)).train()
    with torch.no_grad():
        out = model(golden.images("training"), camid=golden.training_camid)
    for i, head in enumerate(out.heads):
        golden.close(f"train.{2 * i}", head.logits, 1e-4)
        golden.close(f"train.{2 * i + 1}", head.feature, 1e-4)
    golden.close("train.4", out.losses["reconstruction"], 1e-4)
    losses = Criterion(identity_weight=1.0)(out.heads, golden.training_pid, out.losses)
    golden.close("train.loss", losses["total"], 1e-4)


@pytest.mark.parametrize("method", ["topreid", "topreid_vehicle"])
def test_every_name_of_the_authors_has_its_place(golden, method):
    authors = get_authors(method)
    with torch.device("meta"):
        wanted = nextreid.create_model(authors.model, num_classes=171, num_cameras=4).state_dict()
    found = []
    for key in golden.facts["keys"]:
        rules = [m.expand(rule.ours) for rule in authors.rules if (m := re.fullmatch(rule.pattern, key))]
        dropped = [pattern for pattern in authors.dropped if re.fullmatch(pattern, key)]
        assert len(rules) + len(dropped) == 1, key
        found += rules
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("name", ["topreid_vit_b16", "topreid_vit_b16_vehicle"])
def test_heads(name):
    model = small(name, num_classes=4).eval()
    out = model(random_images(model))
    assert torch.equal(out.heads[0].feature, out.embedding)
    rest = torch.cat([head.feature for head in out.heads[1:]], 1)
    assert len(out.heads) == (4 if "vehicle" in name else 2)
    assert torch.equal(rest, model.vector(out.features, "vit")) and not torch.equal(rest, out.embedding)


@pytest.mark.parametrize("training", [False, True])
def test_a_missing_modality_is_what_the_others_predict_of_it(training):
    """Per sample: whole, one of three missing, two missing."""
    model = small("topreid_tiny").train(training)
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    encoded = model.encode_images(random_images(model))
    features = model.forward_tokens(encoded, present=present)
    tokens = torch.cat([encoded["cls"][:, :, None], encoded["tokens"]], 2)
    blocks = model.reconstruction.blocks
    expected = tokens.clone()
    expected[1, 1] = (blocks["0_1"](tokens[1:2, 0])[0] + blocks["2_1"](tokens[1:2, 2])[0]) / 2
    expected[2, 0], expected[2, 2] = blocks["1_0"](tokens[2:, 1])[0], blocks["1_2"](tokens[2:, 1])[0]
    torch.testing.assert_close(features["tokens"], expected[:, :, 1:])
    cls = model.permutation(expected[:, :, 0], expected[:, :, 1:])
    torch.testing.assert_close(model.pool(features), cls.flatten(1))


def test_a_sample_without_any_modality_is_zero():
    model = small("topreid_tiny").eval()
    present = torch.tensor([[True] * 3, [False] * 3, [True] * 3])
    embedding = model(random_images(model), present=present)
    assert torch.equal(embedding.abs().sum(1) > 0, present.any(1))
