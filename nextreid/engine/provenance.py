"""What a model's weights were trained on, and what that says about other data."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from nextreid._files import tensors_digest
from nextreid.data import ReIDDataset, data_card, list_cards
from nextreid.models import ReIDModel
from nextreid.retrieval import METRICS

_logger = logging.getLogger(__name__)


def weights_digest(model: ReIDModel) -> str:
    """Return the fingerprint of all weights that an embedding depends on: 32 hexadecimal digits.

    The necks and classifiers behind it do not count, so that a model with another number of classes has the same one.
    """
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("necks.")}
    return tensors_digest(weights)


def trained_sets(model: ReIDModel) -> list[str]:
    """Return the names of the datasets that the weights were trained on, the latest first."""
    names, record = [], model.pretrained_cfg.trained_on
    while record:
        names.append(record["dataset"])
        record = record.get("start")
    return names


def warn_domain(model: ReIDModel, dataset: ReIDDataset | None = None) -> None:
    """Warn, once, about weights that were trained on something else than these data; None for images of any origin."""
    trained = next(iter(trained_sets(model)), None)
    if trained is None or trained not in list_cards():
        return
    kind, synthetic = data_card(trained).object_type, trained.startswith("synthetic-")
    if synthetic and not (dataset and dataset.name.startswith("synthetic-")):
        on = "drawn images: for photographs take weights that were trained on some"
    elif dataset and dataset.object_type in ("person", "vehicle") and dataset.object_type != kind:
        on = f"images of {kind}s, and {dataset.name} shows {dataset.object_type}s: expect little"
    else:
        return
    _warn_once(f"the weights of {model.pretrained_cfg.architecture} were trained on {trained}, {on}")


@cache
def _warn_once(message: str) -> None:
    _logger.warning("%s", message)


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
    measured = evaluation and evaluation["mAP"] is not None
    metrics = {name: evaluation[name] for name in METRICS} if evaluation and measured else None
    protocol = evaluation and evaluation["protocol"]
    model.pretrained_cfg = model.pretrained_cfg.replace(trained_on=trained_on, metrics=metrics, protocol=protocol)
