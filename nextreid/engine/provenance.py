"""What a model's weights were trained on, and whether a test set's identities were among it."""

from collections.abc import Mapping
from typing import Any

from nextreid.data import ReIDDataset
from nextreid.data.card import refuse_leak
from nextreid.models import ReIDModel
from nextreid.retrieval import METRICS


def trained_sets(model: ReIDModel) -> list[str]:
    """Return the names of the datasets that the weights were trained on, the latest first."""
    names, record = [], model.pretrained_cfg.trained_on
    while record:
        names.append(record["dataset"])
        record = record.get("start")
    return names


def reject_trained_on(model: ReIDModel, dataset: ReIDDataset, allow: bool) -> None:
    """Raise ValueError if the weights were trained on test identities of `dataset`; see `refuse_leak`."""
    refuse_leak(trained_sets(model), dataset.name, allow)


def record_training(model: ReIDModel, record: dict[str, Any], start: dict[str, Any] | None) -> None:
    """Write into the model's configuration, and so into its checkpoints, what its weights were trained on.

    Args:
        model: Its ``pretrained_cfg`` is replaced.
        record: At least ``dataset``, its name.
        start: The record of the weights that the training started from; None for weights without one.
    """
    trained_on = {**record, "start": start} if start else dict(record)
    # Name, notes and metrics of the weights before do not hold for these; nor do the licences, once other data were
    # trained on.
    gone: dict[str, Any] = {"tag": "", "notes": None, "metrics": None, "protocol": None}
    if start:
        gone |= {"license": None, "data_license": None}
    model.pretrained_cfg = model.pretrained_cfg.replace(trained_on=trained_on, **gone)


def record_metrics(model: ReIDModel, evaluation: Mapping[str, Any] | None, epoch_rule: str) -> None:
    """Write the metrics of these weights beside `record_training`'s record, and how their epoch was chosen.

    Args:
        model: Its ``pretrained_cfg`` is replaced.
        evaluation: A row of `EvaluationReport.to_dict`, or None where there was no evaluation.
        epoch_rule: Such as ``"last"``.
    """
    config = model.pretrained_cfg
    metrics = None if evaluation is None else {name: evaluation[name] for name in METRICS}
    model.pretrained_cfg = config.replace(
        trained_on={**(config.trained_on or {}), "epoch_rule": epoch_rule},
        metrics=metrics,
        protocol=None if evaluation is None else evaluation["protocol"],
    )
