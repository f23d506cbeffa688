"""Runs that read a store and that augment on the device, against the run that does neither."""

import hashlib
import json
import logging
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from nextreid.data import ImageCache, augment_batch, loader, seeded_rng
from nextreid.engine import Condition, EmbedOptions, embed_samples, get_recipe, train
from nextreid.engine.embedding import eval_transform


@pytest.fixture
def recipe():
    return get_recipe("tiny", epochs=2, num_ids=3, num_instances=4, warmup_epochs=1, eval_every=1, erase=0.5)


def weights(folder):
    return load_file(folder / "last" / "model.safetensors")


def measured(report):
    rows = [dict(row, evaluation=dict(row["evaluation"])) for row in report.history]
    for row in rows:
        del row["train_seconds"], row["evaluation"]["seconds"]
    return rows


def assert_same_run(one, two):
    assert measured(one) == measured(two)
    a, b = weights(one.folder), weights(two.folder)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupted(model, dataset, recipe, folder):
    """Stop in the second epoch."""
    steps = []

    def hook(module, args, output):
        steps.append(module.training)
        if sum(steps) == 4:
            raise KeyboardInterrupt

    handle = model.register_forward_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        train(model, dataset, recipe, folder, progress=False)
    handle.remove()


def test_a_store_changes_nothing_but_the_decoding(build, dataset, recipe, tmp_path, monkeypatch, caplog):
    plain = train(build("baseline_tiny"), dataset, recipe, tmp_path / "plain", progress=False)
    file = tmp_path / "images.store"

    def refuse(*args):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(loader, "open_images", refuse)
    with caplog.at_level(logging.INFO):
        told = [
            train(build("baseline_tiny"), dataset, replace(recipe, store=store), tmp_path / name, progress=False)
            for name, store in (("memory", "memory"), ("file", str(file)))
        ]
    for report in told:
        assert_same_run(report, plain)
    # 24 training samples, and 18 that are both query and gallery
    assert caplog.text.count(f"{3 * (24 + 18)} images of 64 x 32 pixels") == 2 and file.exists()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(
            build("baseline_tiny"), dataset, replace(recipe, epochs=1, eval_every=0, store="memory"), tmp_path / "blind"
        )
    assert f"{3 * 24} images" in caplog.text

    interrupted(build("baseline_tiny"), dataset, replace(recipe, store="memory"), tmp_path / "parts")
    on = replace(recipe, store=str(file), workers=1)
    assert_same_run(train(build("baseline_tiny"), dataset, on, tmp_path / "parts", resume=True, progress=False), plain)


def test_what_the_device_augments_without_noise_is_the_same_run(build, dataset, recipe, tmp_path):
    recipe = replace(recipe, erase=0.0)
    plain = train(build("baseline_tiny"), dataset, recipe, tmp_path / "a", progress=False)
    other = replace(recipe, augment="device", store="memory", workers=1)
    assert_same_run(train(build("baseline_tiny"), dataset, other, tmp_path / "b", progress=False), plain)


def test_what_the_device_augments_resumes_to_the_bit(build, dataset, recipe, tmp_path):
    on = replace(recipe, augment="device")
    whole = train(build("baseline_tiny"), dataset, on, tmp_path / "whole", progress=False)
    interrupted(build("baseline_tiny"), dataset, on, tmp_path / "parts")
    torch.manual_seed(5)
    with pytest.raises(ValueError, match=r"recipe\.augment: 'device' -> 'cpu'"):
        train(build("baseline_tiny"), dataset, recipe, tmp_path / "parts", resume=True, progress=False)
    assert_same_run(train(build("baseline_tiny"), dataset, on, tmp_path / "parts", resume=True, progress=False), whole)
    plain = train(build("baseline_tiny"), dataset, recipe, tmp_path / "plain", progress=False)
    assert measured(plain) != measured(whole)


def test_the_noise_belongs_to_seed_epoch_and_step(build, dataset, recipe, tmp_path, monkeypatch):
    module, seeds = sys.modules[train.__module__], []

    def watched(batch, transform, generator, part):
        seeds.append(generator.initial_seed())
        return augment_batch(batch, transform, generator, part)

    monkeypatch.setattr(module, "augment_batch", watched)
    for seed in (0, 1):
        on = replace(recipe, augment="device", seed=seed, eval_every=0)
        train(build("baseline_tiny"), dataset, on, tmp_path / str(seed), progress=False)
    keys = [(seed, epoch, step) for seed in (0, 1) for epoch in (1, 2) for step in (1, 2)]
    assert seeds == [int(seeded_rng("erase", *key).integers(2**63)) for key in keys]


def test_a_run_from_before_there_were_stores_is_continued(build, dataset, recipe, tmp_path):
    whole = train(build("baseline_tiny"), dataset, recipe, tmp_path / "whole", progress=False)
    interrupted(build("baseline_tiny"), dataset, recipe, tmp_path / "parts")
    path = tmp_path / "parts" / "recipe.json"
    run = json.loads(path.read_text())
    del run["recipe"]["store"], run["recipe"]["augment"], run["sha256"]
    path.write_text(json.dumps({**run, "sha256": hashlib.sha256(json.dumps(run).encode()).hexdigest()}))
    assert_same_run(
        train(build("baseline_tiny"), dataset, recipe, tmp_path / "parts", resume=True, progress=False), whole
    )


def test_embeddings_from_a_store_are_those_from_the_files(build, dataset):
    model = build("baseline_tiny")
    hidden = Condition(modalities=("rgb", "tir"))
    expected = embed_samples(model, dataset.query, hidden, EmbedOptions(5))
    store = ImageCache.build(dataset.query, dataset.modalities, eval_transform(model))
    for options in ({"cache": store}, {"augment": "device"}, {"cache": store, "augment": "device", "workers": 1}):
        assert torch.equal(embed_samples(model, dataset.query, hidden, EmbedOptions(5, **options)), expected)


@pytest.mark.parametrize("store", ["of", "", "images.npy"])
def test_a_store_is_off_in_memory_or_a_file_of_its_own(store):
    with pytest.raises(ValueError, match=r"'store' is .*allowed: 'off', 'memory', or .*\.store"):
        get_recipe("next", store=store)


def test_a_store_field_is_text_and_augmentation_has_two_places():
    assert get_recipe("next", store="x/images.store").store == "x/images.store"
    for fields, said in (({"store": None}, "takes str"), ({"augment": "gpu"}, "'cpu', 'device'")):
        with pytest.raises(ValueError, match=said):
            get_recipe("next", **fields)
