"""What is known of an architecture's weights: their sources, their data settings, their terms."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).parents[1] / "weights"
"""Folder of the checkpoint folders that the package brings along, each named ``arch.tag``."""
# What belongs to weights and goes where they go; the other fields belong to the architecture.
OF_WEIGHTS = ("protocol", "metrics", "trained_on", "license", "data_license", "base_weights", "notes")


@dataclass(frozen=True)
class PretrainedCfg:
    """Weights of one architecture and what an embedding from them depends on.

    The fields that timm has keep timm's names.

    Attributes:
        architecture: Name of the entrypoint.
        tag: Name of the weights; empty for weights without one, such as untrained or newly trained ones.
        hf_hub_id: Hub repository (``owner/name[@revision]``) of a whole ReID checkpoint folder.
        file: Local checkpoint folder or ``.safetensors`` file.
        clip: open_clip model and weights tag that fill the towers, for a start that is not a ReID checkpoint.
        timm: Whether, without any other source, the image tower alone starts from the weights that timm names for it.
        input_size: ``(3, H, W)``.
        mean: Per-channel mean, the same for every modality.
        std: Per-channel standard deviation.
        interpolation: Resampling of the resize.
        crop_pct: Share of the image that evaluation keeps; 1.0, since a centre crop cuts limbs off.
        crop_mode: ``"squash"``: resize to the input size without regard to the aspect.
        modalities: Names of the modalities in the model's order.
        num_classes: Identities of the classifier in the weights.
        first_conv: Name of the first convolution.
        classifier: Name of the classifier.
        protocol: Evaluation protocol of ``metrics``.
        metrics: Measured results, such as ``{"mAP": 0.7}``.
        trained_on: What training recorded of itself: ``dataset``, ``digest``, ``protocol``, ``recipe``, ``seed``,
            ``epoch``, ``epochs``, ``epoch_rule``, and under ``start`` the same of the weights that it started from.
        license: Of the weights.
        data_license: Of the images and captions that they were trained on.
        base_weights: What the training started from, where that was no checkpoint of ours, such as CLIP's towers.
        paper_ids: Such as ``arXiv:2505.20001``.
        notes: Anything else a user must know.
    """

    architecture: str = ""
    tag: str = ""
    hf_hub_id: str | None = None
    file: str | None = None
    clip: tuple[str, str] | None = None
    timm: bool = False
    input_size: tuple[int, int, int] = (3, 256, 128)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "squash"
    modalities: tuple[str, ...] = ("rgb", "nir", "tir")
    num_classes: int = 0
    first_conv: str = "image_tower.0.trunk.patch_embed.proj"
    classifier: str = "necks.0.classifier"
    protocol: str | None = None
    metrics: dict[str, float] | None = None
    trained_on: dict[str, Any] | None = None
    license: str | None = None
    data_license: str | None = None
    base_weights: str | None = None
    paper_ids: str | None = "arXiv:2505.20001"
    notes: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether there is a source of weights."""
        return bool(self.hf_hub_id or self.file or self.clip)

    def replace(self, **changes: Any) -> "PretrainedCfg":
        """A copy with some fields changed; a field that does not exist is a ValueError that lists those that do."""
        allowed = sorted(field.name for field in dataclasses.fields(self))
        if unknown := sorted(changes.keys() - allowed):
            raise ValueError(f"unknown pretrained_cfg field {', '.join(unknown)}; allowed: {', '.join(allowed)}")
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
        return dataclasses.replace(self, **tuples)

    def to_dict(self, remove_source: bool = False) -> dict[str, Any]:
        """A JSON-able dict without empty fields, without the sources on request."""
        sources = ("hf_hub_id", "file", "clip", "timm") if remove_source else ()
        items = dataclasses.asdict(self).items()
        return {k: list(v) if isinstance(v, tuple) else v for k, v in items if v is not None and k not in sources}


def generate_default_cfgs(cfgs: dict[str, PretrainedCfg]) -> dict[str, dict[str, PretrainedCfg]]:
    """Group ``{"arch.tag": cfg}`` by architecture, as ``{"arch": {"tag": cfg}}``; the first is the default."""
    grouped: dict[str, dict[str, PretrainedCfg]] = {}
    for name, cfg in cfgs.items():
        arch, _, tag = name.partition(".")
        grouped.setdefault(arch, {})[tag] = cfg.replace(architecture=arch, tag=tag)
    return grouped
