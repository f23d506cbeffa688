import pytest
import torch
from timm.scheduler import CosineLRScheduler

from nextreid.engine import RECIPES, get_recipe
from nextreid.engine.optimizer import build_optimizer, lr_factor, lr_noise, parameter_groups, set_lr


@pytest.mark.parametrize("name", sorted(name for name, recipe in RECIPES.items() if recipe.schedule == "cosine"))
def test_the_rate_is_timms_cosine_without_warmup_prefix(name):
    recipe = get_recipe(name)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs,
        lr_min=recipe.floor,
        warmup_t=recipe.warmup_epochs,
        warmup_lr_init=recipe.warmup_start,
    )
    for epoch in range(1, recipe.epochs):
        reference.step(epoch)
        assert lr_factor(recipe, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    assert lr_factor(recipe, recipe.epochs) == pytest.approx(recipe.floor)


def test_idea_falls_during_its_warmup_as_in_its_released_log():
    recipe = get_recipe("idea")
    rates = {epoch: recipe.lr_tower * lr_factor(recipe, epoch) for epoch in (1, 8, 10)}
    assert rates == pytest.approx({1: 3.19e-5, 8: 9.8e-6, 10: 3.2e-6}, rel=2e-3)


def test_constant_keeps_the_rate_after_the_warmup():
    recipe = get_recipe("next", schedule="constant", warmup_epochs=4, warmup_start=0.2, epochs=8)
    assert [lr_factor(recipe, e) for e in range(1, 9)] == pytest.approx([0.4, 0.6, 0.8, 1, 1, 1, 1, 1])


def test_steps_go_down_at_their_milestones():
    """ICPL-ReID: linear from 0.1 over ten epochs, a tenth from epoch 30 and again from 50."""
    recipe = get_recipe("icpl-rgbnt100")
    factors = {epoch: lr_factor(recipe, epoch) for epoch in (1, 9, 10, 29, 30, 49, 50, 120)}
    expected = {1: 0.19, 9: 0.91, 10: 1.0, 29: 1.0, 30: 0.1, 49: 0.1, 50: 0.01, 120: 0.01}
    assert factors == pytest.approx(expected)
    with pytest.raises(ValueError, match="milestones"):
        get_recipe("next", schedule="step")


@pytest.mark.parametrize("decay_all", [True, False])
def test_groups_hold_every_trainable_parameter_once(build, decay_all):
    model = build(num_classes=4)
    groups = parameter_groups(model, get_recipe("next", decay_all=decay_all))
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert not any(name.startswith("text_tower.") for name in names)
    named = dict(model.named_parameters())
    for group in groups:
        assert all(named[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))
        tower = group["name"].startswith("tower")
        assert all(name.startswith("image_tower.") == tower for name in group["param_names"])
        assert group["lr"] == (3.5e-6 if tower else 3.5e-4)
        spares = group["name"].endswith(".no_decay")
        assert group["weight_decay"] == (0.0 if spares else 1e-4)
        if not decay_all:
            tables = model.no_weight_decay()
            assert all((named[n].ndim <= 1 or n in tables) == spares for n in group["param_names"])
    assert len(groups) == (2 if decay_all else 4)


def test_rates_scale_with_the_factor(build):
    recipe = get_recipe("next", schedule="constant", warmup_epochs=4, warmup_start=0.0)
    optimizer = build_optimizer(build("baseline_tiny", num_classes=4), recipe)
    assert set_lr(optimizer, recipe, 2) == pytest.approx({"tower": 1.75e-6, "new": 1.75e-4})
    assert set_lr(optimizer, recipe, 4) == pytest.approx({"tower": 3.5e-6, "new": 3.5e-4})  # of the base, not of 0.5


def test_demos_rates_all_start_and_end_at_those_of_the_new_layers(build):
    """Against timm's cosine over the groups' own rates, whose start and floor are absolute."""
    recipe = get_recipe("demo", lr_noise=0.0)
    optimizer = build_optimizer(build("demo_tiny", num_classes=4, num_cameras=2), recipe)
    rates = {"tower": 5e-6, "new": 3.5e-4, "new.bias": 7e-4}
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in rates.values()]
    theirs = torch.optim.SGD(groups)
    reference = CosineLRScheduler(theirs, t_initial=50, lr_min=0.001 * 3.5e-4, warmup_t=10, warmup_lr_init=0.1 * 3.5e-4)
    for epoch in (1, 5, 9, 10, 30, 49):
        reference.step(epoch)
        expected = dict(zip(rates, (group["lr"] for group in theirs.param_groups), strict=True))
        assert set_lr(optimizer, recipe, epoch) == pytest.approx(expected)
    names = {group["name"]: group["param_names"] for group in optimizer.param_groups}
    assert "image_tower.0.camera" in names["new"] and "image_tower.0.trunk.norm.bias" in names["tower"]


def test_a_frozen_tower_is_left_out_and_a_frozen_model_refused(build):
    model = build("baseline_tiny", num_classes=4)
    model.image_tower.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, get_recipe("next"))] == ["new"]
    with pytest.raises(ValueError, match="requires_grad"):
        parameter_groups(model.requires_grad_(False), get_recipe("next"))


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_the_named_one(build, name, kind):
    optimizer = build_optimizer(build("baseline_tiny", num_classes=4), get_recipe("next", optimizer=name, beta2=0.99))
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_sgd_with_momentum_and_another_rate_for_biases(build):
    """One step from known gradients: the rate of biases is twice that of all else, decay is coupled."""
    model = build("baseline_tiny", num_classes=4)
    recipe = get_recipe("topreid", weight_decay=0.1)
    optimizer = build_optimizer(model, recipe)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, old in before.items():
        rate = 0.018 if name.endswith("bias") else 0.009
        torch.testing.assert_close(model.get_parameter(name), old - rate * (1 + 0.1 * old))


def test_noise_of_the_learning_rate_is_that_of_related_methods():
    """Their schedulers multiply every rate by 1 + n, n normal within 0.67, by the epoch alone: 0.34 to 1.67."""
    factors = [1 + lr_noise(0.67, epoch) for epoch in range(1, 51)]
    assert (round(min(factors), 2), round(max(factors), 2)) == (0.34, 1.67)
    assert round(sum(factors) / 50, 2) == 1.07
    assert lr_noise(0.67, 7) == lr_noise(0.67, 7) and lr_noise(0.0, 7) == 0.0
