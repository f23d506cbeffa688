"""Signal: its vectors and heads, and how its authors' names become ours."""

import re

import pytest
import torch
from zoo import random_images, small

from nextreid.models._authors import build_from_authors

ENDS = {"image_tower.0.camera": "clip_vision_encoder.cv_embed", "alignment.temperature": "AlignM.contra_temp"}


@pytest.mark.parametrize("name", ["signal_clip_b16", "signal_clip_b16_vehicle"])
def test_embedding_and_heads(name):
    model = small(name, num_classes=4, keep=3).eval()
    out = model(random_images(model))
    assert torch.equal(out.embedding, torch.cat([out.features["ori"], out.features["fused"]], 1))
    assert torch.equal(out.heads[0].feature, out.features["fused"])
    rest = torch.cat([head.feature for head in out.heads[1:]], 1)
    assert torch.equal(rest, out.features["ori"]) and len(out.heads) == (4 if "vehicle" in name else 2)
    assert {name for name, loss in out.losses.items() if loss > 0} == {"volume", "patch"}


def their_state(model):
    """What the authors' code would have saved of a model of ours."""
    state, ours = {}, dict(model.state_dict())
    mha = {part: ours.pop(f"interaction.attention.{part}") for part in ("q.weight", "k_weight", "v_weight")}
    state["SIM.modal_interactive.cross_attn.in_proj_weight"] = torch.cat(list(mha.values()))
    bias, dim = ours.pop("interaction.attention.q.bias"), model.embed_dim
    values = [bias, torch.randn(dim), ours.pop("interaction.attention.v_bias")]
    state["SIM.modal_interactive.cross_attn.in_proj_bias"] = torch.cat(values)
    state["SIM.token_selection.W_k.bias"] = state["SIM.token_selection.W_v.bias"] = torch.randn(dim)
    state["SIM.token_selection.W_v.weight"] = torch.randn(dim, dim)
    trunk = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj.weight": "conv1.weight",
    }
    rename = [
        (r"image_tower\.0\.trunk\.norm_pre\.(.*)", r"clip_vision_encoder.base.ln_pre.\1"),
        (r"image_tower\.0\.trunk\.norm\.(.*)", r"clip_vision_encoder.base.ln_post.\1"),
        (r"image_tower\.0\.proj\.weight", "clip_vision_encoder.base.proj"),
        *((rf"image_tower\.0\.trunk\.{re.escape(a)}", f"clip_vision_encoder.base.{b}") for a, b in trunk.items()),
        *((re.escape(a), b) for a, b in ENDS.items()),
        (r"interaction\.q_(.*)", r"SIM.token_selection.W_q.\1"),
        (r"interaction\.k_weight", "SIM.token_selection.W_k.weight"),
        (r"interaction\.attention\.proj\.(.*)", r"SIM.modal_interactive.cross_attn.out_proj.\1"),
        (r"interaction\.((?:ffn|norm).*)", r"SIM.modal_interactive.\1"),
        *((rf"alignment\.samplers\.{m}\.offset\.(.*)", rf"AlignM.DAS_{x}.conv_offset.\1") for m, x in enumerate("rnt")),
        *((rf"alignment\.samplers\.{m}\.proj\.(.*)", rf"AlignM.DAS_{x}.proj_q.\1") for m, x in enumerate("rnt")),
    ]
    blocks = [(r"\.norm", ".ln_"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj")]
    blocks += [("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]
    necks = ["_var", *(("_r", "_n", "_t") if len(model.necks) == 4 else ("",))]
    rename += [(rf"necks\.{i}\.norm\.(.*)", rf"bottleneck{end}.\1") for i, end in enumerate(necks)]
    rename += [(rf"necks\.{i}\.classifier\.(.*)", rf"classifier{end}.\1") for i, end in enumerate(necks)]
    for key, value in ours.items():
        if block := re.fullmatch(r"image_tower\.0\.trunk\.blocks\.(.*)", key):
            name = f"clip_vision_encoder.base.transformer.resblocks.{block[1]}"
            for old, new in blocks:
                name = re.sub(old, new, name)
        else:
            (name,) = (re.sub(old, new, key) for old, new in rename if re.fullmatch(old, key))
        value = value.T if name.endswith("base.proj") else value
        state[name] = value[:, None] if name.endswith("cv_embed") else value
        if name.endswith(("class_embedding", "positional_embedding")):
            state[name] = value.flatten(0, 1).squeeze(0)
    return state


@pytest.mark.parametrize("name", ["signal_clip_b16", "signal_clip_b16_vehicle"])
def test_the_authors_files_convert(name):
    model = small(name, num_classes=4, num_cameras=2, keep=3).eval()
    state = their_state(model)
    arguments = {key: model.model_args[key] for key in ("image_tower_args", "embed_dim", "img_size", "keep")}
    back, found, notes = build_from_authors("signal", state, name, **arguments)
    assert found["num_classes"] == 4 and found["num_cameras"] == 2
    assert found["classifier"] == ("modality" if "vehicle" in name else "joint") and len(notes) == 2
    images, camid = random_images(model), torch.tensor([0, 1, -1])
    ours, again = model(images, camid=camid), back.eval()(images, camid=camid)
    torch.testing.assert_close(again.embedding, ours.embedding)
    for a, b in zip(ours.heads, again.heads, strict=True):
        torch.testing.assert_close(b.logits, a.logits)
