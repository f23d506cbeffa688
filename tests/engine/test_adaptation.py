"""Test-time training: no label is read, the checkpoint stays, the result says so."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from nextreid.cli import main
from nextreid.engine import EmbedOptions, adapt_at_test, evaluate, get_adaptation
from nextreid.engine.adaptation import confident_loss
from nextreid.engine.checkpoint import tensors_digest
from nextreid.models import save_model

FEW = {"epochs": 1, "lr": 1e-3, "batch_size": 6}


@pytest.fixture
def few(dataset):
    return replace(dataset, query=dataset.query[:6], gallery=dataset.gallery[:12])


@pytest.mark.parametrize("method", ["htt", "proxyttt"])
@pytest.mark.parametrize("name", ["next_tiny", "unicat_tiny"])
def test_a_copy_learns_without_labels(build, few, method, name):
    model = build(name, num_classes=5).eval()
    before = tensors_digest(model.state_dict())
    adaptation = get_adaptation(method, **FEW)
    adapted = adapt_at_test(model, few, adaptation, options=EmbedOptions(6))
    assert tensors_digest(model.state_dict()) == before and model.adapted is None
    moved = {k for k, v in adapted.state_dict().items() if not torch.equal(v, model.state_dict()[k])}
    assert any(key.startswith("image_tower.") for key in moved)
    assert not any(key.startswith(("necks.", "text_tower.")) for key in moved)
    other = replace(few, query=tuple(replace(s, pid=3) for s in few.query))  # other labels, the same weights
    again = adapt_at_test(model, other, adaptation, options=EmbedOptions(6))
    assert tensors_digest(again.state_dict()) == tensors_digest(adapted.state_dict())
    report = evaluate(adapted, few)
    assert report.to_dict()["protocol"] == f"camera, adapted to the unlabelled test images ({method}, epochs=1)"
    assert evaluate(model, few).to_dict()["protocol"] == "camera"
    assert "unlabelled test images" in adapted.pretrained_cfg.notes


def test_the_loss_of_confident_samples_is_its_equation():
    torch.manual_seed(4)
    vectors = F.normalize(torch.randn(8, 3, dtype=torch.float64), dim=1)
    cosines = vectors @ F.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1).T
    entropies = [-(p * p.log()).sum() for p in (row.div(0.1).softmax(0) for row in cosines)]
    bound = torch.stack(entropies).quantile(0.6)
    rows = [i for i, entropy in enumerate(entropies) if entropy < bound]
    labels = [int(cosines[i].argmax()) for i in rows]
    entropy = torch.stack([cosines[i].logsumexp(0) - cosines[i, c] for i, c in zip(rows, labels, strict=True)]).mean()
    pairs = [
        torch.stack([vectors[i] @ vectors[k] for k in rows]).logsumexp(0) - vectors[i] @ vectors[j]
        for i, a in zip(rows, labels, strict=True)
        for j, b in zip(rows, labels, strict=True)
        if a == b
    ]
    assert len(set(labels)) > 1
    torch.testing.assert_close(confident_loss(vectors, cosines, 0.6), entropy + torch.stack(pairs).mean())
    torch.testing.assert_close(confident_loss(vectors, cosines, 0.0), 0.1 * torch.stack(entropies).mean())


def test_what_cannot_be_adapted_is_named(build, few):
    with pytest.raises(ValueError, match="no classifier"):
        adapt_at_test(build("unicat_tiny"), few, get_adaptation("htt"))
    with pytest.raises(ValueError, match="take method='proxyttt'"):
        adapt_at_test(build("topreid_tiny", num_classes=5), few, get_adaptation("htt"))
    with pytest.raises(KeyError, match=r"'hht'.*htt"):
        get_adaptation("hht")
    with pytest.raises(ValueError, match=r"'rate'.*lr"):
        get_adaptation("htt", rate=1)
    with pytest.raises(ValueError, match="epochs"):
        get_adaptation("htt", epochs=0)


def test_eval_adapts_and_leaves_the_checkpoint(build, tmp_path, capsys):
    folder = save_model(build("unicat_tiny", num_classes=5), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = ["--dataset", "synthetic-persons", "--dataset-arg", "profile=tiny", "num_train=2", "num_test=3"]
    status = main(["eval", str(folder), *words, "--device", "cpu", "--adapt", "htt", "epochs=1", "lr=1e-3"])
    assert status == 0 and "adapted to the unlabelled test images (htt, epochs=1)" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["eval", str(folder), *words, "--adapt", "htt", "--cross"]) == 2
    assert "leave out --cross" in capsys.readouterr().err
