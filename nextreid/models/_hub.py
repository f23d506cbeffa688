"""A model as a folder: config.json and model.safetensors, written atomically, read strictly, fetched from the hub."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from torch import Tensor, nn

from .._download import MOST_BYTES, hub_answers, hub_errors, reject_large
from .._files import (
    find_folder,
    read_header,
    read_json,
    read_tensors,
    reject_pointer,
    user_path,
    write_folder,
    write_json,
    write_tensors,
)
from ..version import __version__
from ._adapter import unwrap
from ._base import ReIDModel
from ._config import check_config

_logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
GOLDEN = "golden.safetensors"
CARD = "README.md"
SUMS = "SHA256SUMS"
CODE_LICENSE = "Apache-2.0"
# The files that are fetched, and the most bytes of each.
_LIMITS = {CONFIG: 2**20, WEIGHTS: MOST_BYTES, GOLDEN: 2**26, SUMS: 2**16}
_ACTIVATION = re.compile(r"LU\d*$|Swish|Mish|Tanh|Sigmoid")


def save_model(model: ReIDModel, folder: str | Path) -> Path:
    """Write a model as a checkpoint folder, so that ``create_model("local-dir:FOLDER")`` gives it back to the bit.

    The folder appears whole or not at all: it is written beside its place and renamed. It holds no more than loading
    needs, as training writes one after every epoch; `save_pretrained` writes one with its proof.

    Args:
        model: A model made by `create_model`.
        folder: Where to write; an existing checkpoint folder there is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If the model was not built by an entrypoint, or ``folder`` exists and is not a checkpoint.
        OSError: If the disk is full or the place cannot be written; what was there before stays as it was.
    """
    return write_checkpoint(model, folder)


def write_checkpoint(model: ReIDModel, folder: str | Path, complete: Callable[[Path], None] | None = None) -> Path:
    """Write a model as `save_model` does; `complete` adds files to the new folder before it takes its place."""
    target, model = user_path(folder), unwrap(model)
    config = config_of(model)
    if target.exists() and not (target / CONFIG).is_file():
        raise ValueError(f"{target} exists and is not a checkpoint folder (no {CONFIG}); name another folder")
    with write_folder(target) as fresh:
        write_json(fresh / CONFIG, config)
        made = {"version": __version__, "config_sha256": sha256(fresh / CONFIG)}
        write_tensors(fresh / WEIGHTS, model.state_dict(), made)
        if complete:
            complete(fresh)
    return target


def config_of(model: ReIDModel) -> dict[str, Any]:
    """What config.json says of a model; one that no entrypoint built has ``built_by`` and cannot be built from it."""
    cfg = getattr(model, "pretrained_cfg", None)
    args = getattr(model, "model_args", None)
    if cfg is None:
        raise ValueError(f"{type(model).__name__} was not built by create_model: its architecture has no name to save")
    return {
        "architecture": cfg.architecture,
        **({"built_by": "code of its user"} if args is None else {}),
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "activations": activations(model),
        "model_args": {**(args or {}), "num_classes": model.num_classes},
        "pretrained_cfg": {**cfg.to_dict(remove_source=True), "num_classes": model.num_classes},
        "licenses": {"code": CODE_LICENSE, "weights": cfg.license, "data": cfg.data_license},
        "nextreid_version": __version__,
    }


def activations(model: nn.Module) -> dict[str, list[str]]:
    """Names of the activations in each part of a model that has some: no shape of a weight tells them."""
    parts = {
        name: sorted({t for m in part.modules() if _ACTIVATION.search(t := type(m).__name__)})
        for name, part in model.named_children()
    }
    return {name: found for name, found in parts.items() if found}


def load_config(folder: str | Path) -> dict[str, Any]:
    """Read and check a checkpoint folder's config.json.

    Raises:
        FileNotFoundError: If the folder or the file is missing; the message says what a checkpoint folder holds.
        ValueError: If the file is not JSON, holds a name or a value that it must not (see `check_config`), or is not
            the one that SHA256SUMS lists.
    """
    path = find_folder(user_path(folder)) / CONFIG
    if not path.is_file():
        inside = [name for name in ("last", "best") if (path.parent / name / CONFIG).is_file()]
        hint = f": {folder} is the folder of a run, take {' or '.join(f'{folder}/{name}' for name in inside)}"
        if not inside:
            hint = f": it needs {CONFIG} and {WEIGHTS}; training writes one, RUN/last"
        raise FileNotFoundError(f"{folder} is no checkpoint folder{hint}")
    reject_altered(path)
    config = read_json(path, limit=_LIMITS[CONFIG])
    check_config(config, str(path))
    return {"model_args": {}, "pretrained_cfg": {}, **config}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or the one in a checkpoint folder.

    A file of nextreid carries a digest, which must be that of its content; one of another program has none, which is
    logged. A file that SHA256SUMS lists must be the one listed. A ``config.json`` that is not the one that the weights
    were written with is logged as a warning, as one may edit it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of another format, or a pointer of Git LFS.
    """
    path = find_folder(user_path(path))
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file; other formats can run code when they are read")
    reject_altered(path)
    tensors, made = read_tensors(path, third_party=True)
    config = path.with_name(CONFIG)
    if config.is_file() and made.get("config_sha256", sha256(config)) != sha256(config):
        _logger.warning("%s is not the one that %s was written with: it was edited, or damaged", config, path.name)
    return tensors


def weight_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a ``.safetensors`` file, or in the one in a checkpoint folder, from its header alone."""
    path = find_folder(user_path(path))
    path = path / WEIGHTS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        return {name: tuple(entry["shape"]) for name, entry in read_header(path).tensors.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); copy it again") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that the folder's SHA256SUMS lists, by name; empty without that file."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        entry = re.fullmatch(r"(\S{64})  (\w[\w.-]*)", line)
        if not entry:
            raise ValueError(f"{path}, line {number} is not 'SHA-256  NAME', or no file of this folder: {line[:80]!r}")
        sums[entry[2]] = entry[1].lower()
    return sums


def reject_altered(path: Path) -> None:
    """Raise ValueError if SHA256SUMS beside a file lists another digest for it; an unlisted file passes."""
    reject_pointer(path)
    listed = read_sums(path.parent).get(path.name)
    if listed is not None and sha256(path) != listed:
        raise ValueError(
            f"{path} was truncated or altered: its SHA-256 is not the one in {SUMS}. Delete it and fetch it again; "
            f"if the change is yours, delete {SUMS} and write the folder again with save_pretrained"
        )


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights that must fit name by name and shape by shape.

    Raises:
        ValueError: If they do not; the message names the keys, those of one part of the model together.
    """
    expected = model.state_dict()
    problems = [f"missing {name}" for name in _grouped(expected, state)]
    problems += [f"unexpected {name}" for name in _grouped(state, expected)]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model has {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"the weights of {source} do not fit the model: {shown}")
    model.load_state_dict(state, strict=True)


def _grouped(keys: Iterable[str], without: Mapping[str, Tensor]) -> list[str]:
    """Name the keys that are not in `without`, four or more of one part of the model together."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        if key not in without:
            parts.setdefault(".".join(key.split(".")[:2]), []).append(key)
    return [
        text
        for part, names in parts.items()
        for text in (names if len(names) < 4 else [f"{part}.* ({len(names)} keys, such as {names[0]})"])
    ]


def download(repo: str, cache_dir: str | None = None) -> Path:
    """Fetch a checkpoint folder ``owner/name[@revision]`` from the hub, all of its files from one commit.

    Raises:
        FileNotFoundError: If the repository, the revision or a file that loading needs does not exist.
        ConnectionError: If the hub cannot be reached, or broke off, and the cache does not have the files.
        ValueError: If ``repo`` is no repository's name, or a file of it is larger than is fetched.
    """
    name, _, revision = repo.partition("@")
    offline = not hub_answers()
    with hub_errors(repo):
        if not offline:
            reject_large(name, _LIMITS, revision or None)
        folder = snapshot_download(
            name,
            revision=revision or None,
            cache_dir=cache_dir,
            allow_patterns=list(_LIMITS),
            local_files_only=offline,
            library_name="nextreid",
            library_version=__version__,
        )
    for file in (CONFIG, WEIGHTS):
        if not (Path(folder) / file).is_file():
            raise FileNotFoundError(f"hf-hub:{repo} needs {CONFIG} and {WEIGHTS} to be a checkpoint; {file} is missing")
    return Path(folder)
