import json
from dataclasses import replace

import pytest
import torch

from nextreid._disk import lock
from nextreid._files import read_tensors, tensors_digest, write_json
from nextreid.engine import get_recipe, train
from nextreid.engine.checkpoint import _digest, describe, load_state, open_run, save_state
from nextreid.engine.optimizer import build_optimizer
from nextreid.models import create_model


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, 3, 3, 64, 32, generator=generator)
    optimizer.zero_grad()
    model(images).heads[0].logits.square().sum().backward()
    optimizer.step()


@pytest.fixture
def pair(build):
    model = build("baseline_tiny", num_classes=4)
    return model, build_optimizer(model, get_recipe("tiny"))


def test_a_loaded_state_steps_as_the_saved_one_would(build, pair, tmp_path):
    model, optimizer = pair
    step(model, optimizer, 0)
    save_state(tmp_path / "state", model, optimizer, [{"epoch": 1, "loss": 0.5}])
    other = build("baseline_tiny", seed=1, num_classes=4)
    other_optimizer = build_optimizer(other, get_recipe("tiny"))
    assert load_state(tmp_path / "state", other, other_optimizer) == [{"epoch": 1, "loss": 0.5}]
    step(model, optimizer, 1)
    step(other, other_optimizer, 1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_text_tower_is_written_once_and_comes_back(build, tmp_path):
    model, other = build(num_classes=4), build(seed=1, num_classes=4)
    optimizers = [build_optimizer(m, get_recipe("tiny")) for m in (model, other)]
    state, tower = tmp_path / "state.safetensors", tmp_path / "text_tower.safetensors"
    save_state(state, other, optimizers[1], [])
    state.unlink()  # an attempt that died; its tower must not count
    save_state(state, model, optimizers[0], [])
    written = tower.stat().st_mtime_ns, tower.stat().st_ino
    save_state(state, model, optimizers[0], [{"epoch": 1}])
    assert (tower.stat().st_mtime_ns, tower.stat().st_ino) == written
    assert not any("text_tower" in name for name in read_tensors(state)[0])
    load_state(state, other, optimizers[1])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    save_state(tmp_path / "other" / state.name, build(seed=2, num_classes=4), optimizers[0], [])
    (tmp_path / "other" / tower.name).replace(tower)
    with pytest.raises(ValueError, match=r"text_tower\.safetensors belongs to another run"):
        load_state(state, other, optimizers[1])
    save_state(state, model, optimizers[0], [{"epoch": 1}])  # what is in memory counts, not what lies there
    load_state(state, other, optimizers[1])
    tower.unlink()
    with pytest.raises(FileNotFoundError, match=r"text_tower\.safetensors"):
        load_state(state, other, optimizers[1])


def test_a_damaged_or_foreign_state_is_refused(build, pair, tmp_path):
    model, optimizer = pair
    step(model, optimizer, 0)
    path = tmp_path / "state.safetensors"
    with pytest.raises(FileNotFoundError, match=r"state\.safetensors"):
        load_state(path, model, optimizer)
    save_state(path, model, optimizer, [])
    other = build("baseline_tiny", num_classes=5)
    with pytest.raises(ValueError, match="classifier"):
        load_state(path, other, build_optimizer(other, get_recipe("tiny")))
    model.image_tower.requires_grad_(False)
    with pytest.raises(ValueError, match="another optimizer"):
        load_state(path, model, build_optimizer(model, get_recipe("tiny")))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        load_state(path, model, optimizer)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.pop("recipe"), "has no part recipe"),
        (lambda d: d.update(start={"weights": None}), "start has no field trained_on"),
        (lambda d: d.update(start={"trained_on": {"recipe": "x"}}), "must name the dataset"),
        (lambda d: d.update(dataset=[1]), "dataset must be a mapping"),
        (lambda d: d.update(more={}), "unknown part 'more'"),
        (lambda d: d["recipe"].update(epochs="many"), "epochs"),
    ],
)
def test_a_description_of_a_run_that_is_none_is_named(build, dataset, recipe, tmp_path, change, named):
    described = describe(build("baseline_tiny"), dataset, recipe, {}, torch.device("cpu"))
    assert open_run(tmp_path, described, resume=False) is described
    kept = open_run(tmp_path, described, resume=True)
    change(kept)
    write_json(tmp_path / "recipe.json", {**kept, "sha256": _digest(kept)})
    with pytest.raises(ValueError, match=named):
        open_run(tmp_path, described, resume=True)


def test_a_damaged_description_of_a_run_is_named(build, dataset, recipe, tmp_path):
    """Also where no field is compared, as in the provenance that checkpoints repeat."""
    described = describe(build("baseline_tiny"), dataset, recipe, {"root": "data"}, torch.device("cpu"))
    open_run(tmp_path, described, resume=False)
    path = tmp_path / "recipe.json"
    path.write_text(path.read_text().replace('"root": "data"', '"root": "dat"'))
    with pytest.raises(ValueError, match=r"recipe\.json is damaged, or was edited"):
        open_run(tmp_path, described, resume=True)


def test_more_epochs_are_the_same_run_where_the_schedule_is_constant(build, dataset, recipe, tmp_path):
    def go(folder, epochs, schedule):
        changed = replace(recipe, epochs=epochs, schedule=schedule)
        model = build("baseline_tiny")
        return model, train(model, dataset, changed, tmp_path / folder, resume=True, progress=False)

    go("parts", 1, "constant")
    model, report = go("parts", 2, "constant")
    whole, expected = go("whole", 2, "constant")
    assert [row["loss"] for row in report.history] == [row["loss"] for row in expected.history]
    assert tensors_digest(model.state_dict()) == tensors_digest(whole.state_dict())
    assert json.loads((tmp_path / "parts" / "recipe.json").read_text())["recipe"]["epochs"] == 2
    with pytest.raises(ValueError, match=r"recipe\.epochs: 2 -> 1"):
        go("parts", 1, "constant")
    go("cosine", 1, "cosine")
    with pytest.raises(
        ValueError, match=r"recipe\.epochs: 1 -> 2.*local-dir:.*cosine.last in another folder.*constant"
    ):
        go("cosine", 2, "cosine")


def test_a_run_folder_has_one_training_at_a_time(build, dataset, recipe, tmp_path):
    model = build("baseline_tiny")
    with lock(tmp_path / "run" / ".run.lock", "the run"):
        with pytest.raises(BlockingIOError, match=r"the run folder .*run is in use"):
            train(model, dataset, recipe, tmp_path / "run", resume=True, progress=False)
    with pytest.raises(ValueError, match="no training samples"):
        train(model, replace(dataset, train=()), recipe, tmp_path / "never", progress=False)
    assert not (tmp_path / "never").exists()


def test_a_flipped_bit_in_any_file_of_a_run_is_noticed(build, dataset, recipe, tmp_path, caplog):
    """One in each kind of file, at a place that would otherwise read as other numbers."""
    run = tmp_path / "run"
    train(build(), dataset, replace(recipe, epochs=1), run, progress=False)

    def resume():
        train(build(), dataset, replace(recipe, epochs=1), run, resume=True, progress=False)

    def flip(name, place, read):
        content = (run / name).read_bytes()
        flipped = bytearray(content)
        flipped[place if isinstance(place, int) else content.index(place)] ^= 1
        (run / name).write_bytes(flipped)
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            read()
        (run / name).write_bytes(content)

    for name in ("state.safetensors", "text_tower.safetensors"):
        flip(name, -5, resume)
    flip("state.safetensors", b"total", resume)  # of the history, in the header
    flip("recipe.json", b"2.", resume)  # of a version
    for name in ("last", "best"):
        flip(f"{name}/model.safetensors", -5, lambda name=name: create_model(f"local-dir:{run / name}"))
    config = run / "last" / "config.json"
    config.write_text(config.read_text().replace("0.5", "0.4", 1))
    caplog.clear()
    create_model(f"local-dir:{run / 'last'}")
    assert "config.json is not the one that model.safetensors was written with" in caplog.text
    resume()
