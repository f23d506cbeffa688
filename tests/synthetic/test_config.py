"""Settings of the procedural persons."""

import json

import pytest

from nextreid.synthetic import PROFILES, PersonsConfig, synthetic_persons


def test_profiles_have_the_promised_sizes():
    sizes = {name: (c.img_size, c.num_train, c.num_test) for name, c in PROFILES.items()}
    assert sizes == {"tiny": ((64, 32), 24, 16), "small": ((128, 64), 100, 60), "full": ((256, 128), 400, 200)}


def test_json_round_trip():
    config = PersonsConfig(img_size=(64, 32), night=0.25, caption_source="exact", seed=9)
    assert PersonsConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("img_size", (64,)),
        ("img_size", (64.0, 32)),
        ("img_size", (8, 8)),
        ("num_pretrain", -1),
        ("num_train", 1.5),
        ("num_test", 10**6),
        ("cameras", 1),
        ("cameras", 10),
        ("frames_per_visit", 0),
        ("frames_per_visit", 101),
        ("night", 1.5),
        ("night", "dark"),
        ("occlusion", -0.1),
        ("flare", float("nan")),
        ("clutter", 1.5),
        ("bystander", -0.5),
        ("view_gap", 2),
        ("evidence", "upper"),
        ("evidence", "hat:nir"),
        ("blur", -1),
        ("view_persistence", 2),
        ("twins", True),
        ("structure", float("inf")),
        ("nir_corr", -1),
        ("heat_sep", None),
        ("caption_source", "made up"),
        ("caption_noise", 2),
        ("caption_floor", -0.5),
        ("caption_merge", 1),
        ("seed", -1),
        ("version", "0"),
    ],
)
def test_bad_values_name_their_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must"):
        PersonsConfig(**{field: value})


def test_bad_arguments_of_the_builder():
    with pytest.raises(KeyError, match=r"huge.*full.*small.*tiny"):
        synthetic_persons("huge")
    with pytest.raises(ValueError, match="validation"):
        synthetic_persons("tiny", splits=("validation",))
    with pytest.raises(ValueError, match=r"nights.*night"):
        synthetic_persons("tiny", nights=0.5)
    with pytest.raises(ValueError, match="workers"):
        synthetic_persons("tiny", workers=-1)
    with pytest.raises(ValueError, match=r"^seed must"):
        synthetic_persons("tiny", seed=-3)
