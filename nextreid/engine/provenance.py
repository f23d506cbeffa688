"""What a model's weights were trained on, and whether a test set's identities were among it."""

from collections.abc import Mapping
from typing import Any

from nextreid.models import ReIDModel
from nextreid.retrieval import METRICS


def trained_sets(model: ReIDModel) -> list[str]:
    """Return the names of the datasets that the weights were trained on, the latest first."""
    names, record = [], model.pretrained_cfg.trained_on
    while record:
        names.append(record["dataset"])
        record = record.get("start")
    return names


def record_training(model: ReIDModel, record: dict[str, Any], start: dict[str, Any] | None) -> None:
    """Write into the model's configuration, and so into its checkpoints, what its weights were trained on.

    The record names the ``dataset`` at least; `start` is the record of the weights that the training started from.
    """
    trained_on = {**record, "start": start} if start else dict(record)
    # Name, notes and metrics of the weights before do not hold for these; nor do the licences, once other data were
    # trained on.
    gone: dict[str, Any] = {"tag": "", "notes": None, "metrics": None, "protocol": None}
    if start:
        gone |= {"license": None, "data_license": None}
    model.pretrained_cfg = model.pretrained_cfg.replace(trained_on=trained_on, **gone)


def record_metrics(model: ReIDModel, evaluation: Mapping[str, Any] | None, epoch_rule: str) -> None:
    """Write the metrics of these weights, a row of `EvaluationReport.to_dict`, and how their epoch was chosen."""
    trained_on = {**(model.pretrained_cfg.trained_on or {}), "epoch_rule": epoch_rule}
    metrics = evaluation and {name: evaluation[name] for name in METRICS}
    protocol = evaluation and evaluation["protocol"]
    model.pretrained_cfg = model.pretrained_cfg.replace(trained_on=trained_on, metrics=metrics, protocol=protocol)
