import json
import logging
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

from nextreid._files import write_json
from nextreid.data.captions import caption_sampler
from nextreid.data.sampler import PKSampler
from nextreid.engine import evaluate, get_recipe, train
from nextreid.engine.checkpoint import _digest
from nextreid.engine.provenance import trained_sets
from nextreid.models import create_model, load_config


def weights(folder):
    return load_file(folder / "last" / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_times(history):
    rows = []
    for row in history:
        row = {key: value for key, value in row.items() if key != "train_seconds"}
        for name in row.keys() & {"evaluation", "evaluation_without_text"}:
            row[name] = {key: value for key, value in row[name].items() if key != "seconds"}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A run of three epochs that nothing interrupts."""
    torch.manual_seed(0)
    recipe = get_recipe("tiny", epochs=3, num_ids=3, warmup_epochs=1, eval_every=1)
    return train(create_model("next_tiny"), dataset, recipe, tmp_path_factory.mktemp("whole") / "run", progress=False)


def stop_in_step(model, number, error=KeyboardInterrupt):
    """Raise in the given training step, counted from 1."""
    steps = []

    def hook(module, args, output):
        steps.append(module.training)
        if sum(steps) == number:
            raise error

    return model.register_forward_hook(hook)


def test_a_run_leaves_its_folder(build, dataset, recipe, tmp_path):
    model = build()
    report = train(model, dataset, recipe, tmp_path / "run", progress=False)
    assert sorted(path.name for path in report.folder.iterdir()) == [
        "best",
        "last",
        "log.jsonl",
        "metrics.jsonl",
        "recipe.json",
        "state.safetensors",
        "text_tower.safetensors",
    ]
    rows = [json.loads(line) for line in (report.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(report.history) and [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["loss"].keys() == {"total", "identity", "triplet"} and rows[0]["evaluation"]["text"] is True
    run = json.loads((report.folder / "recipe.json").read_text())
    assert run["recipe"] == recipe.to_dict() and run["model"]["architecture"] == "next_tiny"
    assert run["dataset"]["train"] == 24 and run["versions"]["torch"] == torch.__version__
    assert model.num_classes == 6

    assert report.last is report.history[-1]
    assert report.best["evaluation"]["mAP"] == max(row["evaluation"]["mAP"] for row in rows)
    for name, row in (("last", report.last), ("best", report.best)):
        again = evaluate(create_model(f"local-dir:{report.folder / name}"), dataset)
        assert again.result.mAP == pytest.approx(row["evaluation"]["mAP"], abs=1e-6)
    assert json.loads(json.dumps(report.to_dict()))["best"] == report.best


@pytest.mark.parametrize(("smoothing", "weight", "margin"), [(0.1, 0.25, None), (0.3, 1.0, 0.6)])
def test_one_step_is_the_hand_written_one(build, dataset, recipe, tmp_path, smoothing, weight, margin):
    """Sampler, classes, loss, rates and coupled decay against the same step written out."""
    plain = replace(
        recipe, epochs=1, flip=0.0, pad=0, erase=0.0, num_ids=6, optimizer="adam", lr_tower=1e-3, lr_new=1e-2,
        weight_decay=0.1, smoothing=smoothing, identity_weight=weight, margin=margin,
        triplet_weight=1.0, warmup_epochs=0, schedule="constant",
    )  # fmt: skip
    model, twin = build("baseline_tiny", num_classes=6), build("baseline_tiny", num_classes=6)
    report = train(model, dataset, plain, tmp_path / "run", progress=False)

    sampler = PKSampler([sample.pid for sample in dataset.train], 6, 4, 0)
    sampler.set_epoch(1)
    (batch,) = list(sampler)
    samples = [dataset.train[index] for index, _, _ in batch]
    images = torch.stack([torch.stack([torch.from_numpy(i).permute(2, 0, 1) for i in s.images]) for s in samples])
    classes = sorted({sample.pid for sample in dataset.train})
    target = torch.tensor([classes.index(sample.pid) for sample in samples])
    output = twin.train()((images.float() / 255 - 0.5) / 0.5)
    ((logits, feature, _),) = output.heads
    identity = F.cross_entropy(logits, target, label_smoothing=smoothing)
    distance = torch.cdist(feature, feature, compute_mode="donot_use_mm_for_euclid_dist")
    equal = target[:, None] == target
    furthest = distance.masked_fill(~equal, -1).amax(1)
    nearest = distance.masked_fill(equal, 1e9).amin(1)
    gap = furthest - nearest
    triplet = (F.softplus(gap) if margin is None else F.relu(gap + margin)).mean()
    loss = weight * identity + triplet
    assert report.last["loss"] == pytest.approx(
        {"total": loss.item(), "identity": identity.item(), "triplet": triplet.item()}, rel=1e-5
    )
    loss.backward()
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    for name, p in twin.named_parameters():
        if p.grad is not None:
            gradient = p.grad + 0.1 * before[name]
            rate = 1e-3 if name.startswith("image_tower.") else 1e-2
            expected = before[name] - rate * gradient / (gradient.abs() + 1e-8)  # Adam's first step
            settled = gradient.abs() > 1e-5
            torch.testing.assert_close(
                dict(model.named_parameters())[name][settled], expected[settled], rtol=1e-4, atol=1e-5
            )


def test_batches_and_captions_are_those_of_the_keyed_draws(build, dataset, recipe, tmp_path):
    model, rows = build(), []
    encode = model.encode_text
    model.encode_text = lambda captions: rows.append((model.training, captions)) or encode(captions)
    train(model, dataset, replace(recipe, caption_keep_ratio=0.5, seed=3), tmp_path / "run", progress=False)
    drawn = [captions for training, captions in rows if training]
    expected = []
    sampler = PKSampler([sample.pid for sample in dataset.train], 3, 4, 3)
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        for batch in sampler:
            samples = [dataset.train[index] for index, _, _ in batch]
            draws = [(epoch, slot) for _, _, slot in batch]
            captions, keys = [s.captions for s in samples], [s.key for s in samples]
            draw, experts = caption_sampler(captions, keys, draws, 3, 0.5), range(model.head.num_semantic_experts)
            expected.append([[draw(i, m, e) for m in range(3)] for i in range(len(keys)) for e in experts])
    assert drawn == expected


def test_the_model_hears_what_is_missing_which_camera_and_the_seed_of_the_epoch(build, dataset, recipe, tmp_path):
    holes = tuple(replace(s, images=(s.images[0], None, s.images[2])) if s.camid else s for s in dataset.train)
    model, heard = build("baseline_tiny"), []

    def hook(module, args, kwargs):
        heard.append((kwargs["present"].tolist(), kwargs["camid"].tolist(), torch.initial_seed()))

    model.register_forward_pre_hook(hook, with_kwargs=True)
    train(model, replace(dataset, train=holes), recipe, tmp_path / "a", progress=False)
    for present, cameras, _ in heard:
        assert {0, 1} == set(cameras) and present == [[True, not camera, True] for camera in cameras]
    seeds = [seed for _, _, seed in heard]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    train(model, replace(dataset, train=holes), replace(recipe, seed=1), tmp_path / "b", progress=False)
    assert not set(seeds) & {seed for _, _, seed in heard[4:]}


def test_the_recipe_reaches_the_augmentation(build, dataset, recipe, tmp_path, monkeypatch):
    recipe = replace(recipe, epochs=1, eval_every=0, flip=0.25, pad=3, erase=0.75, geometry="independent")
    made, load = [], sys.modules[train.__module__].make_loader

    def watch(samples, transform, *args, **kwargs):
        made.append(transform)
        return load(samples, transform, *args, **kwargs)

    monkeypatch.setattr(sys.modules[train.__module__], "make_loader", watch)
    train(build("baseline_tiny"), dataset, recipe, tmp_path / "run", progress=False)
    (transform,) = made
    assert (transform.flip, transform.pad, transform.erase, transform.geometry) == (0.25, 3, 0.75, "independent")
    assert transform.img_size == (64, 32) and transform.interpolation == "bicubic"


def test_text_can_be_switched_off_and_may_be_absent(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1)
    bare = {n: tuple(replace(s, captions=()) for s in getattr(dataset, n)) for n in ("train", "query", "gallery")}
    for name, data, text in (("off", dataset, False), ("absent", replace(dataset, **bare), True)):
        model = build()
        model.encode_text = None  # calling it would fail
        report = train(model, data, replace(recipe, text=text), tmp_path / name, progress=False)
        assert report.last["evaluation"]["text"] is False
    assert same(weights(tmp_path / "off"), weights(tmp_path / "absent"))


def test_lower_caption_quality_is_another_run(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1)
    train(build(), dataset, recipe, tmp_path / "full", progress=False)
    train(build(), dataset, replace(recipe, caption_quality=0.35), tmp_path / "some", progress=False)
    assert not same(weights(tmp_path / "full"), weights(tmp_path / "some"))


def test_an_interrupted_run_ends_as_an_uninterrupted_one(build, dataset, recipe, tmp_path, whole):
    recipe, model = replace(recipe, epochs=3), build()
    hook = stop_in_step(model, 6)  # the second step of epoch 3
    with pytest.raises(KeyboardInterrupt):
        train(model, dataset, recipe, tmp_path / "parts", progress=False)
    hook.remove()
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == 2
    torch.manual_seed(99)
    parts = train(build(seed=5), dataset, replace(recipe, workers=1), tmp_path / "parts", resume=True, progress=False)
    assert without_times(parts.history) == without_times(whole.history)
    assert same(weights(whole.folder), weights(parts.folder))
    finished = build()
    done = train(finished, dataset, recipe, tmp_path / "parts", resume=True, progress=False)
    assert done.history == parts.history  # nothing was left to do
    last = load_config(tmp_path / "parts" / "last")["pretrained_cfg"]
    assert finished.pretrained_cfg.trained_on == last["trained_on"]
    assert finished.pretrained_cfg.metrics == last.get("metrics")


def test_a_kill_before_the_state_is_written_repeats_the_epoch(build, dataset, recipe, tmp_path, whole, monkeypatch):
    module, calls = sys.modules[train.__module__], []
    recipe, real = replace(recipe, epochs=3), module.save_state

    def die_at_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(module, "save_state", die_at_third)
    with pytest.raises(KeyboardInterrupt):
        train(build(), dataset, recipe, tmp_path / "parts", progress=False)
    monkeypatch.undo()
    parts = train(build(), dataset, recipe, tmp_path / "parts", resume=True, progress=False)
    assert without_times(parts.history) == without_times(whole.history)
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == 3


def test_the_callers_generators_and_workers_change_nothing(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    train(build(), dataset, recipe, tmp_path / "a", progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    train(build(), dataset, replace(recipe, workers=2), tmp_path / "b", progress=False)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    train(build(), dataset, replace(recipe, seed=1), tmp_path / "c", progress=False)
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_training_learns(build, dataset, recipe, tmp_path):
    longer = replace(recipe, epochs=12, eval_every=0)
    report = train(build("baseline_tiny"), dataset, longer, tmp_path / "run", progress=False)
    assert report.last["loss"]["total"] < 0.8 * report.history[0]["loss"]["total"]
    assert report.best is None and not (tmp_path / "run" / "best").exists()


def test_evaluation_is_as_rare_as_asked_and_never_skips_the_end(build, dataset, recipe, tmp_path):
    rare = replace(recipe, epochs=3, eval_every=2)
    report = train(build("baseline_tiny"), dataset, rare, tmp_path / "run", progress=False)
    assert [row["epoch"] for row in report.history if "evaluation" in row] == [2, 3]


def test_bfloat16_trains_in_bfloat16_and_evaluates_in_float32(build, dataset, recipe, tmp_path):
    model, seen = build(), []
    tower = model.image_tower[0].trunk.blocks[0].mlp.fc1
    tower.register_forward_hook(lambda module, _, output: seen.append((module.training, output.dtype)))
    report = train(model, dataset, replace(recipe, epochs=1, amp="bf16"), tmp_path / "run", progress=False)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}
    again = evaluate(create_model(f"local-dir:{tmp_path / 'run' / 'last'}"), dataset)
    assert again.result.mAP == report.last["evaluation"]["mAP"]


def test_a_clipped_gradient_gives_another_step(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=2)
    train(build("baseline_tiny"), dataset, recipe, tmp_path / "a", progress=False)
    train(build("baseline_tiny"), dataset, replace(recipe, grad_clip=1e6), tmp_path / "b", progress=False)
    train(build("baseline_tiny"), dataset, replace(recipe, grad_clip=1e-6), tmp_path / "c", progress=False)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run_and_keeps_the_last_epoch(build, dataset, recipe, tmp_path, where):
    model, steps = build("baseline_tiny"), []

    def spoil(module, args, output):
        steps.append(module.training)
        if sum(steps) == 4:
            if where == "loss":
                return output._replace(heads=tuple(h._replace(feature=h.feature * float("nan")) for h in output.heads))
            output.heads[0].feature.register_hook(lambda gradient: gradient * float("nan"))
        return output

    hook = model.register_forward_hook(spoil)
    sampler = PKSampler([sample.pid for sample in dataset.train], recipe.num_ids, recipe.num_instances)
    sampler.set_epoch(2)
    named = [dataset.train[index].key for index, *_ in list(sampler)[1]]
    keys = ", ".join(f"'{key}'" for key in named[:4])
    with pytest.raises(FloatingPointError, match=rf"{where}.*epoch 2, step 2 .*samples.*{keys}.*lr_new"):
        train(model, dataset, recipe, tmp_path / "run", progress=False)
    hook.remove()
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path / "run").values())
    report = train(model, dataset, recipe, tmp_path / "run", resume=True, progress=False)
    whole = train(build("baseline_tiny"), dataset, recipe, tmp_path / "whole", progress=False)
    assert without_times(report.history) == without_times(whole.history)


def test_a_run_is_neither_overwritten_nor_continued_as_another(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1)
    train(build("baseline_tiny"), dataset, recipe, tmp_path, progress=False)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="resume=True"):
        train(build("baseline_tiny"), dataset, recipe, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"recipe\.lr_new: 0\.001 -> 0\.1; recipe\.seed: 0 -> 4"):
        train(build("baseline_tiny"), dataset, replace(recipe, lr_new=0.1, seed=4), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"model\.architecture: 'baseline_tiny' -> 'next_tiny'"):
        train(build(), dataset, recipe, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"model\.drop_path: 0\.0 -> 0\.1"):
        train(build("baseline_tiny", drop_path=0.1), dataset, recipe, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"dataset\.digest: .*; dataset\.train: 24 -> 23"):
        train(build("baseline_tiny"), replace(dataset, train=dataset.train[1:]), recipe, tmp_path, resume=True)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_the_samples_whose_embedding_is_bad_are_named(build, dataset, recipe, tmp_path):
    model = build("baseline_tiny")

    def spoil(module, args, output):
        bad = output.heads[0].feature.clone()
        bad[5] = float("inf")
        return output._replace(heads=(output.heads[0]._replace(feature=bad),))

    model.register_forward_hook(spoil)
    sampler = PKSampler([sample.pid for sample in dataset.train], recipe.num_ids, recipe.num_instances)
    sampler.set_epoch(1)
    key = dataset.train[next(iter(sampler))[5][0]].key
    with pytest.raises(FloatingPointError, match=rf"embeddings of 1 of its samples are not: '{key}'\)"):
        train(model, dataset, recipe, tmp_path / "run", progress=False)


def test_the_folder_says_what_was_trained_where_and_from_what(build, dataset, recipe, tmp_path, caplog):
    recipe = replace(recipe, epochs=1)
    data = replace(dataset, notes=("two images are missing",))
    source = {"captions": tmp_path / "captions", "root": None}
    report = train(build("baseline_tiny"), data, recipe, tmp_path / "a", source=source, progress=False)
    run = json.loads((tmp_path / "a" / "recipe.json").read_text())
    assert run["dataset"]["digest"] == dataset.digest() and run["dataset"]["notes"] == list(data.notes)
    assert run["dataset"]["source"] == {"captions": str(tmp_path / "captions"), "root": None}
    assert run["versions"].keys() == {"nextreid", "python", "torch", "timm", "open_clip", "numpy"}
    assert run["versions"]["numpy"] == np.__version__ and run["hardware"]["processes"] == 1
    assert run["hardware"]["threads"] == torch.get_num_threads() and run["hardware"]["device"] == "cpu"
    assert run["start"]["trained_on"] is None
    assert run["start"]["weights"] is None  # the zoo knows weights for this model, and none were loaded
    first = {
        "dataset": "tints", "digest": dataset.digest(), "protocol": "camera", "recipe": "tiny", "seed": 0,
        "epoch": 1, "epochs": 1, "epoch_rule": "last",
    }  # fmt: skip
    model = create_model(f"local-dir:{report.folder / 'last'}")
    assert model.pretrained_cfg.trained_on == first
    assert evaluate(model, dataset).to_dict()["trained_on"] == first

    # A second training on top of it; the chain stays, also when it is resumed with the model that it has changed.
    other = replace(dataset, name="others")
    recipe = replace(recipe, epochs=2)
    hook = stop_in_step(model, 3)
    with pytest.raises(KeyboardInterrupt):
        train(model, other, recipe, tmp_path / "b", progress=False)
    hook.remove()
    changed = json.loads((tmp_path / "b" / "recipe.json").read_text())
    assert changed["start"]["weights"] == str(report.folder / "last")
    assert changed["start"]["trained_on"] == first and changed["start"]["digest"] != run["start"]["digest"]
    changed["versions"]["torch"], changed["hardware"]["cpu"] = "1.0", "abacus"
    del changed["sha256"]  # as another version or machine would have written it
    write_json(tmp_path / "b" / "recipe.json", {**changed, "sha256": _digest(changed)})
    with caplog.at_level(logging.WARNING):
        train(model, other, recipe, tmp_path / "b", resume=True, progress=False)
    assert "versions.torch: '1.0'" in caplog.text and "hardware.cpu: 'abacus'" in caplog.text
    second = model.pretrained_cfg.trained_on
    assert (second["dataset"], second["epoch"], second["start"]) == ("others", 2, first)
    assert trained_sets(model) == ["others", "tints"]


def test_weights_that_know_the_test_set_are_not_trained_on(build, dataset, recipe, tmp_path):
    model = build("baseline_tiny")
    model.pretrained_cfg = model.pretrained_cfg.replace(trained_on={"dataset": "wmveid863"})
    data = replace(dataset, name="msvr310")
    with pytest.raises(ValueError, match=r"wmveid863.*--allow-leak"):
        train(model, data, recipe, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"wmveid863.*--allow-leak"):
        evaluate(model, data)
    assert not (tmp_path / "run").exists()
    train(model, data, replace(recipe, epochs=1), tmp_path / "run", allow_leak=True, progress=False)
    assert evaluate(model, data, allow_leak=True).result.num_valid


@pytest.mark.parametrize("eval_every", [1, 2])
def test_the_last_epoch_is_measured_with_captions_and_without(build, dataset, recipe, tmp_path, eval_every):
    model = build()
    report = train(model, dataset, replace(recipe, eval_every=eval_every), tmp_path / "run", progress=False)
    assert [row.keys() & {"evaluation", "evaluation_without_text"} for row in report.history] == [
        {"evaluation"} if eval_every == 1 else set(),
        {"evaluation", "evaluation_without_text"},
    ]
    for name, text in (("evaluation", True), ("evaluation_without_text", False)):
        told = report.last[name]
        again = evaluate(model, dataset, text=text)
        assert told["text"] is text and told["mAP"] == again.result.mAP
        assert told["protocol_details"] == again.result.protocol.to_dict()


def test_images_that_cannot_be_read_follow_the_policy(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1)
    (tmp_path / "bad.png").write_bytes(b"torn")

    def spoilt(sample):
        return replace(sample, images=(sample.images[0], tmp_path / "bad.png", sample.images[2]))

    bad = replace(dataset, train=(spoilt(dataset.train[0]), *dataset.train[1:]))
    bad = replace(bad, query=(spoilt(dataset.query[0]), *dataset.query[1:]), gallery=dataset.gallery[1:])
    with pytest.raises(ValueError, match=r"bad\.png.*nir"):
        evaluate(build("baseline_tiny"), bad)
    for policy, samples in (("skip", 23), ("mask", 24)):
        report = train(build("baseline_tiny"), bad, recipe, tmp_path / policy, on_error=policy, progress=False)
        run = json.loads((report.folder / "recipe.json").read_text())
        assert run["dataset"]["train"] == samples and run["dataset"]["notes"]
        done = evaluate(build("baseline_tiny"), bad, on_error=policy)
        assert done.result.num_query == report.last["evaluation"]["queries"] == len(dataset.query) - (policy == "skip")
    with pytest.raises(ValueError, match="raise, skip, mask"):
        train(build("baseline_tiny"), bad, recipe, tmp_path / "odd", on_error="ignore", progress=False)


def test_resume_starts_what_has_not_begun(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1)
    a = train(build("baseline_tiny"), dataset, recipe, tmp_path / "a", resume=True, progress=False)
    b = train(build("baseline_tiny"), dataset, recipe, tmp_path / "b", progress=False)
    assert without_times(a.history) == without_times(b.history)


def test_what_cannot_be_trained_is_named_and_leaves_no_folder(build, dataset, recipe, tmp_path):
    def refused(message, *, model=None, data=dataset, recipe=recipe):
        with pytest.raises(ValueError, match=message):
            train(model or build("baseline_tiny"), data, recipe, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    one = tuple(sample for sample in dataset.train if sample.pid == 3)
    refused("'tints' has no training samples", data=replace(dataset, train=()))
    refused(r"one training identity \(3\)", data=replace(dataset, train=one))
    refused("without identity", data=replace(dataset, train=(replace(one[0], pid=-1), *dataset.train)))
    refused("num_ids=7", recipe=replace(recipe, num_ids=7))
    refused("5 classes.*6 training identities.*num_classes=0", model=build("baseline_tiny", num_classes=5))
    refused("eval_every=0", data=replace(dataset, query=()))
    refused("modalities=", model=build("baseline_tiny", modalities=("rgb", "tir")))
    apart = build("baseline_tiny")
    apart.modality_width = None
    refused("takes no contrast_weight", model=apart, recipe=replace(recipe, contrast_weight=1.0))
    refused("requires_grad", model=build("baseline_tiny", num_classes=6).requires_grad_(False))


def test_a_damaged_state_is_named(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, epochs=1)
    train(build("baseline_tiny"), dataset, recipe, tmp_path, progress=False)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        train(build("baseline_tiny"), dataset, recipe, tmp_path, resume=True, progress=False)


@pytest.mark.slow
def test_a_compiled_step_is_compiled_once(build, dataset, recipe, monkeypatch, tmp_path):
    counter = CompileCounterWithBackend("eager")
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda code: compile_with(code, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    report = train(
        build(head={"drop": 0.0}), dataset, replace(recipe, compile=True), tmp_path / "compiled", progress=False
    )
    plain = train(build(head={"drop": 0.0}), dataset, recipe, tmp_path / "plain", progress=False)
    assert counter.frame_count == 1 and sum(row["steps"] for row in report.history) > 2
    losses = [[row["loss"]["total"] for row in run.history] for run in (report, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_encoded_captions_are_kept_from_run_to_run(build, dataset, recipe, monkeypatch, tmp_path):
    model, path = build(), tmp_path / "texts.safetensors"
    model.text_tower.open_cache(path)
    train(model, dataset, replace(recipe, epochs=1), tmp_path / "run", progress=False)
    again = create_model(f"local-dir:{tmp_path / 'run' / 'last'}")
    again.text_tower.open_cache(path)
    monkeypatch.setattr(type(again.text_tower), "_forward", lambda *_: pytest.fail("a text was encoded again"))
    assert evaluate(again, dataset).result.mAP > 0


def test_an_epoch_leaves_one_line_in_a_pipe(build, dataset, recipe, tmp_path, capsys):
    train(build("baseline_tiny"), dataset, replace(recipe, epochs=2, eval_every=2), tmp_path / "run")
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if re.match(r"epoch \d/2: loss", line)]
    assert out == "" and "\r" not in err and len(lines) == 2
    assert re.fullmatch(r"epoch 1/2: loss \d+\.\d{3}, lr \d\.\de-\d\d, \d\d:\d\d left", lines[0])
    assert re.search(r", mAP \d+\.\d, rank-1 \d+\.\d, 00:00 left$", lines[1])


def test_a_run_whose_queries_have_no_match_is_trained_all_the_same(build, dataset, recipe, tmp_path):
    """There is a last epoch, without metrics, and no best one."""
    blind = tuple(replace(sample, camid=0) for sample in dataset.gallery)
    report = train(build(), replace(dataset, query=blind, gallery=blind), replace(recipe, epochs=1), tmp_path / "run")
    assert report.last["evaluation"]["mAP"] is None and "another camera" in report.last["evaluation"]["hint"]
    assert report.best is None and not (tmp_path / "run" / "best").exists()
    assert json.loads((tmp_path / "run" / "last" / "config.json").read_text())["pretrained_cfg"].get("metrics") is None
