"""The paper's model at its full size, on published captions."""

import json
import os
from pathlib import Path

import pytest
import torch

import nextreid
from nextreid.data import split_sentences
from nextreid.losses import Criterion

CAPTIONS = Path(os.environ.get("NEXTREID_CAPTIONS", Path(__file__).parents[3] / "shared" / "captions"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder"), [("next_clip_b16", "RGBNT201"), ("next_clip_b16_vehicle", "MSVR310")])
def test_forward_and_backward_with_published_captions(name, folder):
    files = [CAPTIONS / "NEXT" / folder / f"train_{m}.json" for m in ("RGB", "NI", "TI")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no published captions at {files[0].parent}; set NEXTREID_CAPTIONS")
    texts = [json.loads(file.read_text())[:2] for file in files]
    captions = [[split_sentences(entries[i]["description"]) for entries in texts] for i in range(2)]
    torch.manual_seed(0)
    model = nextreid.create_model(name, num_classes=2)
    height, width = model.img_size
    assert (height, width) == ((256, 128) if folder == "RGBNT201" else (128, 256))
    out = model(torch.randn(2, 3, 3, height, width), captions)
    assert out.embedding.shape == (2, 4 * 3 * 512) and out.embedding.isfinite().all()
    assert out.features["beta"].abs().max() > 0
    Criterion()(out.heads, torch.tensor([0, 1]), out.losses)["total"].backward()
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)
