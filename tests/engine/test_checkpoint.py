import pytest
import torch

from nextreid._files import read_tensors, write_json
from nextreid.engine import get_recipe
from nextreid.engine.checkpoint import _digest, describe, load_state, open_run, save_state
from nextreid.engine.optimizer import build_optimizer


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
