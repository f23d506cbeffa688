"""ICPL-ReID: the authors' own numbers, its files, prompts, prototypes and schedule."""

import pytest
import torch
from goldens import Golden, silence
from torch.nn import functional as F
from zoo import PRESENT, random_images, small

import nextreid
from nextreid.losses import batch_hard_triplet, identity_loss, pairwise_contrast, prototype_loss
from nextreid.models._authors import build_from_authors

MODALITIES = ("rgb", "nir", "tir")


@pytest.fixture(scope="module")
def golden():
    return Golden("icpl-RGBNT201")


@pytest.fixture(scope="module")
def authors(golden):
    """The authors' weights in our model, which both tests share: they are large."""
    return golden.model("icpl")


@pytest.mark.slow
def test_the_authors_features(golden, authors):
    model = authors.eval()
    with torch.no_grad():
        features = model.forward_features(golden.images())
        golden.close("embedding", model.pool(features))
        golden.close("embedding_after_neck", model.vector(features, after_neck=True))
        for name, ours in {"block11_cls": "block", "cls_768": "wide", "cls_512": "cls"}.items():
            golden.close(name, features[ours])
        golden.close("tokens_mean_512", features["tokens"].mean(2))
        golden.close("text_feature", model.encode_prompts(torch.tensor([0, 7])).transpose(0, 1))
        model.plain = True
        plain = model.encode_images(golden.images())["wide"]
        model.plain = False
        golden.close("prototype_feature_without_adapters", plain)
        golden.close("prototype_projected", model.image_tower.project(F.normalize(plain, dim=-1)))


@pytest.mark.slow
def test_the_authors_training_outputs(golden, authors):
    model, pid, ids = silence(authors).train(), golden.training_pid, torch.tensor([3, 9])
    with torch.no_grad():
        out = model(golden.images("training"))
        texts, own = model.encode_prompts(torch.arange(16)), model.encode_prompts(ids)
        for m, modality in enumerate(MODALITIES):
            heads, parts = out.heads[2 * m : 2 * m + 2], [out.features[name][:, m] for name in ("block", "wide", "cls")]
            for i, ours in enumerate([heads[0].logits, heads[1].logits, *parts]):
                golden.close(f"train.{5 * m + i}", ours, 1e-4)
            draw = golden.fill.draw(f"prototypes.{modality}", 156, (171, 768))
            model.prototypes[m] = F.normalize(draw, dim=1)
            towards = model.image_tower.towers()[m].proj(model.prototypes[m][ids])
            both = golden.tensor(f"train.{modality}.prototype_to_text") + golden.tensor(
                f"train.{modality}.text_to_prototype"
            )
            torch.testing.assert_close(pairwise_contrast(towards, own[m]), both, rtol=1e-4, atol=0)
            found = {
                "id": sum(identity_loss(head.logits, pid, 0.0) for head in heads),
                "triplet": sum(batch_hard_triplet(part, pid, 0.3) for part in parts),
                "image_to_prototype": prototype_loss(parts[1], model.prototypes[m], pid),
                "image_to_text16": identity_loss(parts[2] @ texts[m].T, pid, 0.0),
            }
            for name, loss in found.items():
                golden.close(f"train.{modality}.{name}", loss, 1e-4)
        parts = {name: out.features[name] for name in ("block", "wide", "cls")}
        total = sum(
            golden.tensor(f"train.{m}.{direction}")
            for m in MODALITIES
            for direction in ("prototype_to_text", "text_to_prototype")
        )
        torch.testing.assert_close(model.identity_losses(parts, pid)["prototype_text"], 0.33 * total, rtol=1e-4, atol=0)
        model.after_step(parts, pid)
        golden.close("train.prototypes_after", model.prototypes[:, ids], 1e-4)


TINY = {"image_tower_args": {"depth": 2, "embed_dim": 32, "num_heads": 2}, "embed_dim": 16, "img_size": (32, 16)}
NAMES = {
    "class_embedding": "trunk.cls_token",
    "positional_embedding": "trunk.pos_embed",
    "conv1.": "trunk.patch_embed.proj.",
    "ln_pre.": "trunk.norm_pre.",
    "ln_post.": "trunk.norm.",
    "transformer.resblocks.": "trunk.blocks.",
    ".ln_": ".norm",
    ".attn.in_proj_": ".attn.qkv.",
    ".attn.out_proj.": ".attn.proj.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}


def as_the_authors_name_it(model):
    """The state of a small model under the authors' names, each branch with all of its parts."""
    state, shared, ours = {}, len(model.adapters) == 1, model.state_dict()
    necks = ("bottleneck", "bottleneck_proj"), ("classifier", "classifier_proj")
    for m in range(3):
        n, branch = 0 if shared else m, f"model{m + 1}."
        for key, value in ours.items():
            if key.startswith(f"image_tower.{n}."):
                name = key.removeprefix(f"image_tower.{n}.")
                for theirs, short in NAMES.items():
                    name = name.replace(short, theirs)
                name = "proj" if name == "proj.weight" else name
                value = value.T if name == "proj" else value[0, 0] if name == "class_embedding" else value
                state[f"{branch}image_encoder.{name}"] = value[0] if name == "positional_embedding" else value
            elif key.startswith(f"adapters.{n}."):
                block, layer, part = key.split(".")[2:]
                name = f"image_encoder.transformer.resblocks.{block}.MLP_Adapter.{layer}_proj.{part}"
                state[branch + name] = value
            elif key.startswith("text_tower.transformer.") and "token_embedding" not in key:
                state[f"{branch}text_encoder.{key.removeprefix('text_tower.transformer.')}"] = value
            elif key.startswith("necks.") and int(key.split(".")[1]) // 2 == n:
                neck, part = int(key.split(".")[1]) % 2, key.split(".", 3)[2:]
                state[f"{branch}{necks[part[0] == 'classifier'][neck]}.{part[1]}"] = value
        learner = f"{branch}prompt_learner."
        state[learner + "cls_ctx"] = ours["prompts.contexts"][n]
        state[learner + "token_prefix"] = ours["words_before"][n][None]
        state[learner + "token_suffix"] = ours["words_after"][n][None]
        for layer in ("down", "up"):
            state[f"{branch}text_encoder.transformer.resblocks.0.MLP_Adapter.{layer}_proj.weight"] = torch.ones(2, 2)
    return {key: value.clone() for key, value in state.items()}


@pytest.mark.parametrize("name", ["icpl_clip_b16", "icpl_clip_b16_msvr310"])
def test_a_file_fills_the_model_whose_branches_it_shares(name):
    tower = {"width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(1)
    model = nextreid.create_model(name, num_classes=4, prompt_file=True, text_tower=tower, **TINY).eval()
    state = as_the_authors_name_it(model)
    back, found, notes = build_from_authors("icpl", state, name, text_tower=tower, **TINY)
    assert found["share_image_tower"] == name.endswith("msvr310") and found["num_classes"] == 4
    assert any("never runs" in note for note in notes)
    token = "text_tower.transformer.token_embedding.weight"  # which no file has
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items() if k != token)
    images = random_images(model)
    assert torch.equal(model(images).embedding, back.eval()(images).embedding)
    assert torch.equal(model.encode_prompts(), back.encode_prompts())
    state["model3.text_encoder.ln_final.weight"] += 1
    with pytest.raises(ValueError, match="are one parameter, and the file has two different ones"):
        build_from_authors("icpl", state, name, text_tower=tower, **TINY)


def test_prompts_read_the_words_of_the_sentence():
    model = small("icpl_tiny", num_classes=3, share_image_tower=True)
    tower = model.text_tower
    tokens = tower.tokenize(["A photo of a X X X X person."])
    words = tower.embed_words(tokens)
    with torch.no_grad():
        model.prompts.contexts.copy_(words[0, model.before : model.before + 4].expand(1, 3, 4, -1))
        torch.testing.assert_close(model.encode_prompts(torch.tensor([2]))[0], tower(tokens))
    bare = small("icpl_tiny", num_classes=3, text_tower=None)
    assert "prompt_text" not in bare.state_dict() and bare.of_identities == ("necks",)
    with pytest.raises(ValueError, match="build the model with text_tower"):
        bare.encode_prompts()


def test_prototypes_are_means_of_what_is_there_and_move_by_sample():
    model, pid = small("icpl_tiny", num_classes=2, share_image_tower=True).eval(), torch.tensor([1, 1, 0])
    images = random_images(model)
    seen = []

    def embed(name):
        seen.append(model.plain)
        return model.vector(model.forward_features(images, present=PRESENT), name).detach(), pid

    model.start_epoch(3, embed)
    model.start_epoch(4, embed)
    assert seen == [True, False] and not model.plain
    features = model.forward_features(images, present=PRESENT)
    wide = features["wide"].detach()
    torch.testing.assert_close(model.prototypes[0, 1], F.normalize(wide[:2, 0].mean(0), dim=0))
    torch.testing.assert_close(model.prototypes[1, 1], F.normalize(wide[0, 1], dim=0))
    assert model.prototypes[0, 0].abs().sum() == 0  # no rgb image of identity 0
    before = model.prototypes.clone()
    model.after_step({"wide": wide, "present": PRESENT}, pid)
    moved = (model.prototypes != before).any(-1)
    assert moved.sum() <= 4 and not moved[0, 0]
    losses = model.identity_losses({n: features[n] for n in model.loss_parts}, pid)
    sum(losses.values()).backward()
    assert model.prompts.contexts.grad.abs().sum() > 0


def test_weights_follow_the_epoch():
    model, pid = small("icpl_tiny", num_classes=2, share_image_tower=True).eval(), torch.tensor([1, 1, 0])
    parts = {
        name: part for name, part in model.forward_features(random_images(model)).items() if name in model.loss_parts
    }
    early, late = [], []
    for epoch, found in ((20, early), (21, late)):
        model.epoch = epoch
        found.append(model.identity_losses(parts, pid))
    for name, ratio in {"prototype": 1 / 9, "image_text": 9.0, "prototype_text": 1.0, "block_triplet": 1.0}.items():
        torch.testing.assert_close(late[0][name], early[0][name] * ratio)
    with pytest.raises(ValueError, match="losses"):
        small("icpl_tiny", losses={"colour": 1.0})
