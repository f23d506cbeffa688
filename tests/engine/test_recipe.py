import dataclasses
import json

import numpy as np
import pytest

from nextreid.engine import RECIPES, Recipe, get_recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_survives_json(name):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_next_is_what_the_paper_says():
    recipe = get_recipe("next")
    assert (recipe.optimizer, recipe.lr_tower, recipe.weight_decay, recipe.beta1) == ("adam", 3.5e-6, 1e-4, 0.9)
    assert recipe.num_ids * recipe.num_instances == 64
    assert (recipe.identity_weight, recipe.triplet_weight) == (0.25, 1.0)
    assert get_recipe("next-eq12").identity_weight == get_recipe("next-eq12").triplet_weight == 1.0
    assert get_recipe("next-rgbnt100").num_ids * get_recipe("next-rgbnt100").num_instances == 128


def test_overrides_leave_the_named_recipe_alone():
    assert get_recipe("tiny", epochs=3, margin=0.3).margin == 0.3
    assert RECIPES["tiny"].margin is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["tiny"].epochs = 1


def test_unknown_names_say_what_there_is():
    with pytest.raises(KeyError, match=r"'nxt'.*next-eq12"):
        get_recipe("nxt")
    with pytest.raises(ValueError, match=r"'learning_rate'.*lr_tower"):
        get_recipe("next", learning_rate=1)
    with pytest.raises(ValueError, match="'epoch'"):
        Recipe.from_dict({"epoch": 3})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("optimizer", "lamb", "'adam', 'adamw'"),
        ("amp", "fp16", "'off', 'bf16'"),
        ("geometry", "none", "'shared', 'independent'"),
        ("epochs", 0, "at least 1"),
        ("epochs", 1.5, "takes int"),
        ("epochs", True, "takes int"),
        ("text", 1, "takes bool"),
        ("num_ids", 1, "at least 2"),
        ("lr_new", -1e-3, "more than 0"),
        ("lr_new", float("nan"), "more than 0"),
        ("lr_new", float("inf"), "finite"),
        ("lr_new", None, "takes float"),
        ("lr_new", "1e-3", "takes float"),
        ("grad_clip", 0, "more than 0"),
        ("caption_quality", 1.2, "at most 1"),
        ("caption_keep_ratio", 0.0, "more than 0"),
        ("workers", -1, "at least 0"),
        ("milestones", [50, 30], "ascending"),
        ("name", None, "takes str"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(field, value, said):
    with pytest.raises(ValueError, match=rf"'{field}'.*{said}"):
        get_recipe("next", **{field: value})


def test_whole_numbers_are_allowed_where_a_share_is_meant():
    assert get_recipe("next", flip=1, grad_clip=1, caption_keep_ratio=1).flip == 1


def test_numpy_numbers_are_plain():
    recipe = get_recipe("tiny", epochs=np.int64(3), lr_new=np.float32(0.5), text=np.bool_(True))
    assert json.loads(json.dumps(recipe.to_dict())) == recipe.to_dict() and type(recipe.epochs) is int


def test_loggers_are_names_and_jsonl_is_always_among_them():
    assert get_recipe("tiny").log == get_recipe("tiny", log=[]).log == ("jsonl",)
    assert get_recipe("tiny", log="wandb").log == ("jsonl", "wandb")
    assert get_recipe("tiny", log=["mlflow", "jsonl"]).log == ("jsonl", "mlflow")
    for wrong in ("visdom", ["wandb", "wandb"], [["wandb"]], 3, None):
        with pytest.raises(ValueError, match=r"'log'.*'tensorboard', 'wandb', 'trackio', 'mlflow'"):
            get_recipe("tiny", log=wrong)
