"""Methods that rebuild a memory before every epoch, through stops and in the middle of a run."""

import pytest
import torch
from safetensors.torch import load_file

from nextreid import create_model
from nextreid.engine import get_recipe, train


def run(dataset, out, seen, stop=None, resume=False):
    torch.manual_seed(0)
    model = create_model("icpl_tiny", share_image_tower=True, losses={"late": 1, "plain_epochs": 1})
    start = model.start_epoch

    def watched(epoch, embed):
        start(epoch, embed)
        seen.append((epoch, model.prototypes.clone()))
        if epoch == stop:
            raise KeyboardInterrupt

    model.start_epoch = watched
    recipe = get_recipe("tiny", epochs=3, num_ids=3, num_instances=2, warmup_epochs=1, eval_every=0)
    train(model, dataset, recipe, out, resume=resume, progress=False)
    return load_file(out / "last" / "model.safetensors")


@pytest.mark.slow
def test_a_memory_of_each_epoch_survives_a_stop_to_the_bit(dataset, tmp_path):
    whole, parts = [], []
    weights = run(dataset, tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, tmp_path / "parts", parts, stop=3)
    again = run(dataset, tmp_path / "parts", parts, resume=True)
    assert [epoch for epoch, _ in parts] == [1, 2, 3, 3]
    assert all(torch.equal(dict(whole)[epoch], memory) for epoch, memory in parts)
    assert weights.keys() == again.keys() and all(torch.equal(weights[k], again[k]) for k in weights)
    assert not any("prototypes" in name for name in weights)
