"""A model as a folder: config.json and model.safetensors, written atomically and read strictly."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..version import __version__
from ._base import ReIDModel

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def save_model(model: ReIDModel, folder: str | Path) -> Path:
    """Write a model as a checkpoint folder, so that ``create_model("local-dir:FOLDER")`` gives it back to the bit.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Args:
        model: A model made by `create_model`.
        folder: Where to write; an existing checkpoint folder there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If the model was not built by an entrypoint, or ``folder`` exists and is not a checkpoint.
    """
    target = Path(folder)
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg is None or not hasattr(model, "model_args"):
        raise ValueError(f"{type(model).__name__} was not built by create_model: its architecture has no name to save")
    if target.exists() and not (target / CONFIG).is_file():
        raise ValueError(f"{target} exists and is not a checkpoint folder (no {CONFIG}); name another folder")
    args = {**model.model_args, "num_classes": model.num_classes}
    config = {
        "architecture": cfg.architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": args,
        "pretrained_cfg": {**cfg.to_dict(remove_source=True), "num_classes": model.num_classes},
        "nextreid_version": __version__,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        os.chmod(fresh, 0o755)
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {key: value.detach().contiguous().cpu() for key, value in model.state_dict().items()}
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt", "nextreid": __version__})
        for name in (CONFIG, WEIGHTS):
            with (fresh / name).open("rb+") as file:
                os.fsync(file.fileno())  # the new names must not reach the disk before the new bytes
        swap_folder(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return target


def swap_folder(fresh: Path, target: Path) -> None:
    """Put a finished folder in another one's place; a kill between the two renames leaves both on disk."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def load_config(folder: str | Path) -> dict[str, Any]:
    """Read and check a checkpoint folder's config.json.

    Raises:
        FileNotFoundError: If the folder or the file is missing; the message says what a checkpoint folder holds.
        ValueError: If the file is not JSON or names no architecture.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no checkpoint folder: it needs {CONFIG} and {WEIGHTS}, {CONFIG} is missing"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise ValueError(f"{path} names no architecture; it was not written by nextreid")
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f"{path}: {key!r} is a {type(config[key]).__name__}, expected a table of names and values")
    return config


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or the one in a checkpoint folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is of another kind, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file; other formats can run code when they are read")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); copy it again") from error


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must fit name by name and shape by shape.

    Raises:
        ValueError: If they do not; the message names the keys.
    """
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"the weights of {source} do not fit the model: {shown}")
    model.load_state_dict(state, strict=True)


def download(repo: str, cache_dir: str | None = None) -> Path:
    """Fetch a checkpoint folder from the hub: ``owner/name`` or ``owner/name@revision``."""
    name, _, revision = repo.partition("@")
    paths = [
        hf_hub_download(
            name,
            file,
            revision=revision or None,
            cache_dir=cache_dir,
            library_name="nextreid",
            library_version=__version__,
        )
        for file in (CONFIG, WEIGHTS)
    ]
    return Path(paths[0]).parent
