"""What a model's weights have learned from, and whether a test set was among it."""

from typing import Any

from nextreid.data import ReIDDataset
from nextreid.data.card import refuse_leak
from nextreid.models import ReIDModel


def trained_sets(model: ReIDModel) -> list[str]:
    """Return the names of the data sets that the weights were trained on, the latest first."""
    names, record = [], model.pretrained_cfg.trained_on
    while record:
        names.append(record["dataset"])
        record = record.get("start")
    return names


def refuse_trained_on(model: ReIDModel, dataset: ReIDDataset, allow: bool) -> None:
    """Raise ValueError if the weights were trained on test identities of `dataset`; see `refuse_leak`."""
    refuse_leak(trained_sets(model), dataset.name, allow)


def record_training(model: ReIDModel, record: dict[str, Any], start: dict[str, Any] | None) -> None:
    """Write into the model's configuration, and so into its checkpoints, what its weights were trained on.

    Args:
        model: Its ``pretrained_cfg`` is replaced.
        record: At least ``dataset``, its name.
        start: The record of the weights that the training started from; None for weights without one.
    """
    told = {**record, "start": start} if start else dict(record)
    model.pretrained_cfg = model.pretrained_cfg.replace(trained_on=told)
