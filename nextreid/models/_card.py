"""The model card: what a checkpoint's configuration states, in words; what it does not state is called so."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

UNKNOWN = "not stated"
_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail")


def model_card(config: Mapping[str, Any]) -> str:
    """Write the card of a checkpoint from its config.json: Markdown with the YAML head that the hub reads."""
    cfg, args = config.get("pretrained_cfg", {}), config.get("model_args", {})
    name = ".".join(filter(None, (config["architecture"], cfg.get("tag"))))
    licenses, metrics, record = config.get("licenses", {}), cfg.get("metrics"), cfg.get("trained_on") or {}
    seeds = record.get("seeds", record.get("seed"))
    conditions = [
        ("Protocol", cfg.get("protocol")),
        ("Seeds", _listed(seeds) if isinstance(seeds, list | tuple) else seeds),
        ("Epoch rule", record.get("epoch_rule")),
    ]
    parts = [
        f"---\n{_head(licenses.get('weights'))}\n---\n\n# {name}",
        "A model of nextreid for multi-modal object re-identification: images of one object in several modalities, "
        "and captions where the model reads them, become one vector. This card is made from `config.json`.",
        "## Model\n\n" + _table(("", ""), _model_rows(config, cfg)),
        "### Arguments\n\n" + _table(("Argument", "Value"), [(f"`{k}`", repr(v)) for k, v in args.items()]),
        "## Training\n\n" + _table(("", ""), _training_rows(cfg)),
        "## Results\n\n" + (_table(("Measure", "Value"), metrics.items()) if metrics else f"Measures: {UNKNOWN}."),
        _table(("Condition", ""), conditions),
        "## Licences\n\n" + _table(("Of the", ""), [(k, licenses.get(k)) for k in ("code", "weights", "data")]),
        "## Use\n\n```python\nimport nextreid\n\n"
        'model = nextreid.create_model("local-dir:FOLDER", num_classes=0).eval()  # or "hf-hub:OWNER/NAME"\n```\n\n'
        "`nextreid models verify FOLDER` compares the files with `SHA256SUMS`, and the embedding of a fixed input with "
        "`golden.safetensors`.",
        "The model is made for research on re-identification. Recognising persons at a distance is regulated in many "
        "places; whoever uses it answers for the lawfulness of the use.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(license: str | None) -> str:
    terms: dict[str, Any] = {}
    if license and license.lower() in _LICENSES:
        terms = {"license": license.lower()}
    elif license:
        terms = {"license": "other", "license_name": license}
    tags = ["nextreid", "re-identification", "multi-modal"]
    task = "image-feature-extraction"
    return ModelCardData(library_name="nextreid", pipeline_tag=task, tags=tags, **terms).to_yaml()


def _model_rows(config: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[tuple[str, Any]]:
    size = cfg.get("input_size")
    return [
        ("Architecture", config["architecture"]),
        ("Modalities, in this order", _listed(cfg.get("modalities"))),
        ("Images, height x width", f"{size[1]}x{size[2]}" if size else None),
        ("Mean and standard deviation", " and ".join(filter(None, (_listed(cfg.get(k)) for k in ("mean", "std"))))),
        ("Resize", ", ".join(str(cfg[k]) for k in ("crop_mode", "interpolation") if k in cfg)),
        ("Embedding width", config.get("num_features")),
        ("Identities of its classifier", config.get("num_classes")),
        ("Paper", cfg.get("paper_ids")),
        ("Notes", cfg.get("notes")),
        ("Written by nextreid", config.get("nextreid_version")),
    ]


def _training_rows(cfg: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    record, prefix = cfg.get("trained_on") or {}, ""
    while True:
        epoch = f"{record['epoch']} of {record.get('epochs', UNKNOWN)}" if "epoch" in record else None
        names = {"Dataset": "dataset", "Digest of the data": "digest", "Protocol": "protocol", "Recipe": "recipe"}
        rows += [(prefix + title, record.get(key)) for title, key in names.items()]
        rows += [(f"{prefix}Epoch", epoch)]
        record, prefix = record.get("start"), "Before it: "
        if not record:
            return [*rows, ("Base weights", cfg.get("base_weights"))]


def _table(header: tuple[str, str], rows: Any) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_text(name)} | {_text(value)} |" for name, value in rows)])


def _listed(values: Any) -> str | None:
    return ", ".join(map(str, values)) if values else None


def _text(value: Any) -> str:
    if value is None or value == "":
        return UNKNOWN
    words = f"{value:.4g}" if isinstance(value, float) else str(value)
    # Markdown shows HTML as such: a tag in a note would be one in the card
    return " ".join(words.replace("|", "\\|").replace("&", "&amp;").replace("<", "&lt;").split())
