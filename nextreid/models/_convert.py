"""Third-party towers to a checkpoint folder; the one place where a pickle is ever opened."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from .._files import check_out_folder, user_path
from ..towers import load_timm_weights, timm_normalisation
from ..towers.clip_weights import ClipMapping, load_clip_weights
from ._base import ReIDModel
from ._factory import create_model
from ._hub import CONFIG, activations, read_weights, sha256
from ._publish import save_pretrained
from ._registry import model_entrypoint

_SAFE_TORCH = "2.10"  # crafted files got past weights_only before: CVE-2025-32434, CVE-2026-24747
PICKLES = (".pth", ".pt", ".bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_COUNTERS = ("n_averaged",)  # of AveragedModel, beside the weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and a wrapping module


class Conversion(NamedTuple):
    """What `convert_clip` or `convert_timm` did.

    Attributes:
        folder: The checkpoint folder.
        mapping: Which tensors went where.
        activation: Of the image tower; weights do not say which one they were trained with.
        untrained: Parts of the model that the source has nothing for.
        notes: What was unpacked on the way, in words.
    """

    folder: Path
    mapping: ClipMapping
    activation: str
    untrained: tuple[str, ...]
    notes: tuple[str, ...]


def convert_clip(
    source: str | Path, model_name: str, folder: str | Path, *, overwrite: bool = False, **model_args: Any
) -> Conversion:
    """Read a CLIP and write a model with its towers as a checkpoint folder.

    The rest of the model starts from fixed random weights, so that a file always gives the same ones; the folder's
    config says what is untrained.

    Args:
        source: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin``, which are read by ``torch.load(weights_only=True)``
            and in no other way; see `load_clip_weights` for the names in it.
        model_name: Model to build, such as ``next_clip_b16``.
        folder: Where to write.
        overwrite: Whether a checkpoint folder there may be replaced.
        **model_args: Arguments of the model, such as ``img_size``.

    Returns:
        What was mapped and what was not.

    Raises:
        FileNotFoundError: If there is no such file.
        FileExistsError: If the folder exists and `overwrite` is False.
        ValueError: If the file holds more than tensors, is damaged, or does not fit; if torch is older than 2.10 and
            the file a pickle; the message says which and what to do.
    """

    def load(state: Mapping[str, Tensor], model: ReIDModel) -> ClipMapping:
        if model.text_tower is not None and "patch_embed.proj.weight" in state:
            raise ValueError(
                f"this is the image tower alone (timm names), and {model_name!r} reads captions with a text tower that "
                "no training changes; convert a whole CLIP, or leave the tower out: --model-arg text_tower=None"
            )
        return load_clip_weights(state, model.image_tower.towers(), model.text_tower)

    return _convert(load, source, model_name, folder, overwrite, model_args)


def convert_timm(
    source: str | Path,
    model_name: str,
    folder: str | Path,
    *,
    by_order: bool = False,
    overwrite: bool = False,
    **model_args: Any,
) -> Conversion:
    """Read the weights of any network of timm and write a model with it as its image tower as a checkpoint folder.

    Args:
        source: As for `convert_clip`, with timm's names.
        model_name: Model to build, such as ``baseline``; ``image_tower=`` says which network it is.
        folder: Where to write.
        by_order: The file has other names, and timm's order; see `nextreid.towers.load_timm_weights`.
        overwrite: Whether a checkpoint folder there may be replaced.
        **model_args: Arguments of the model, such as ``image_tower``.

    Returns:
        What was mapped and what was not.

    Raises:
        FileNotFoundError: As `convert_clip`.
        FileExistsError: As `convert_clip`.
        ValueError: As `convert_clip`, or if the model reads captions, which such a file has no text tower for.

    Example:
        >>> convert_timm("resnet50.safetensors", "baseline", "start", image_tower="resnet50")  # doctest: +SKIP
    """

    def load(state: Mapping[str, Tensor], model: ReIDModel) -> ClipMapping:
        if model.text_tower is not None:
            raise ValueError(
                f"{model_name!r} reads captions, and an untrained text tower makes noise of them: leave it out by "
                "text_tower=None"
            )
        towers = model.image_tower.towers()
        model.pretrained_cfg = model.pretrained_cfg.replace(**timm_normalisation(towers[0].name))
        return load_timm_weights(state, towers, by_order)

    return _convert(load, source, model_name, folder, overwrite, model_args)


def _convert(
    load: Callable[[Mapping[str, Tensor], ReIDModel], ClipMapping],
    source: str | Path,
    model_name: str,
    folder: str | Path,
    overwrite: bool,
    model_args: dict[str, Any],
) -> Conversion:
    source, folder = user_path(source), user_path(folder)
    check_out_folder(folder, (CONFIG,))
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(f"{folder} exists; take another folder, or replace it (overwrite=True, --overwrite)")
    model_entrypoint(model_name)  # an architecture: a trained model has no use for other towers
    state, notes = read_third_party(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(model_name, **model_args)
    try:
        mapping = load(state, model)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
    untrained = tuple(sorted(parts - {"image_tower", "text_tower"}))
    filled = " and ".join(name for name, count in (("image", mapping.image), ("text", mapping.text)) if count)
    rest = f"untrained: {', '.join(untrained)}" if untrained else "nothing else has weights"
    cfg = model.pretrained_cfg
    text = (
        f"From {source.name} (sha256 {sha256(source)}, {mapping.naming} names): {filled} tower; {rest}. "
        f"The images' mean is {cfg.mean}."
    )
    model.pretrained_cfg = cfg.replace(clip=None, timm=False, notes=text)
    save_pretrained(model, folder)
    act = " and ".join(activations(model.image_tower).get("0", ["no activation"]))
    return Conversion(folder, mapping, act, untrained, tuple(notes))


def read_third_party(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read a file of tensors by name; return them, and in words what training tools had wrapped around them."""
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix not in (".safetensors", *PICKLES):
        raise ValueError(f"{path} has an unknown format; allowed: .safetensors, {', '.join(PICKLES)}")
    value = read_weights(path) if path.suffix == ".safetensors" else _load_pickle(path)
    notes = []
    while isinstance(value, Mapping):
        inner = next((name for name in _WRAPPERS if isinstance(value.get(name), Mapping)), None)
        if inner is None:
            break
        others = sorted(str(key) for key in value if key != inner)
        notes.append(f"took {inner!r}" + (f", left {', '.join(others)}" if others else ""))
        value = value[inner]
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{path} holds {_describe(value)}, not tensors by name; looked under {', '.join(_WRAPPERS)}")
    wrong = [
        f"{key!r} is {_describe(v)}"
        for key, v in value.items()
        if not isinstance(key, str) or not isinstance(v, Tensor) or v.layout != torch.strided or v.is_quantized
    ]
    if wrong:
        raise ValueError(f"{path} holds {len(wrong)} entries that are no tensors by name: {', '.join(wrong[:5])}")
    state = {key: tensor for key, tensor in value.items() if key not in _COUNTERS}
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        notes.append(f"took {prefix!r} off every name")
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state, notes


def _load_pickle(path: Path) -> Any:
    if TorchVersion(torch.__version__) < _SAFE_TORCH:
        raise ValueError(
            f"{path} is a pickle, and torch {torch.__version__} can be made to run code by a crafted one even with "
            f"weights_only=True: install torch {_SAFE_TORCH} or later for this, or convert a .safetensors file"
        )
    members = []
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in members):
        raise ValueError(
            f"{path} is a TorchScript archive, a program with weights inside, and no program is run here; OpenAI's "
            "weights come from the hub instead (pretrained=True), and others as a state_dict or .safetensors file"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0] or "it is no pickle of tensors"
        raise ValueError(
            f"{path} was not read: it is damaged or holds more than tensors, which could run code ({reason}); ask for "
            "a .safetensors file, or for a file of the state_dict alone"
        ) from error
    except Exception as error:  # a crafted or damaged file makes torch's reader fail in many ways
        raise ValueError(f"{path} is damaged or no file of torch.save: {str(error).partition(chr(10))[0]}") from error


def _describe(value: Any) -> str:
    return f"a {type(value).__name__}" if not isinstance(value, Tensor) else f"a tensor of {value.layout}"
