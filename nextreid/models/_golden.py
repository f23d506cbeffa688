"""The proof that travels with a checkpoint: an input that anyone can form again, and the embedding of it."""

import hashlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._files import read_tensors, user_path, write_tensors
from ..version import __version__
from ._base import ReIDModel
from ._factory import create_model
from ._hub import CONFIG, GOLDEN, SUMS, WEIGHTS, download, load_config, read_sums, sha256

SEED = 0
TOLERANCE = 1e-3
_UNLISTED = f"not listed in {SUMS}"
CAPTION = ("A person seen from the back during daytime.", "She is wearing a red coat and carrying a backpack.")


class GoldenInput(NamedTuple):
    """Two samples; the second has no image of the last modality, where the model has several."""

    images: Tensor  # (2, M, 3, H, W), in [-1, 1]
    text: Tensor | None  # captions as unit features (2, M, D); None for a model that reads none
    present: Tensor  # bool (2, M)
    camid: Tensor  # (2,): the first camera and an unknown one

    def digest(self) -> str:
        """SHA-256 of the values, in hexadecimal digits."""
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in self if tensor is not None)).hexdigest()


class Finding(NamedTuple):
    """One thing that `verify_checkpoint` looked at.

    Attributes:
        name: A file, or what was computed.
        ok: Whether it is as it should be.
        note: What was found.
    """

    name: str
    ok: bool
    note: str


def golden_input(model: ReIDModel, seed: int = SEED) -> GoldenInput:
    """Form the input of the proof for a model's modalities, image size and width, on the CPU.

    The bytes are SHAKE-256 of the seed, which no version of a random generator can change.
    """
    count = len(model.modalities)
    images = _noise("images", seed, (2, count, 3, *model.img_size))
    text = F.normalize(_noise("text", seed, (2, count, model.embed_dim)), dim=-1) if model.uses_text else None
    present = torch.ones(2, count, dtype=torch.bool)
    present[1, count - 1] = count == 1
    return GoldenInput(images, text, present, torch.tensor([0, -1]))


def _noise(part: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    drawn = hashlib.shake_256(f"nextreid golden {part} {seed}".encode()).digest(math.prod(shape))
    return torch.from_numpy(np.frombuffer(drawn, np.uint8).astype(np.float32) / np.float32(127.5) - 1).view(shape)


@torch.inference_mode()
def compute_golden(model: ReIDModel, seed: int = SEED) -> tuple[dict[str, Tensor], str]:
    """Embed the golden input with a model on the CPU, in float32 and evaluation mode.

    Returns ``embedding (2, F)`` and, with a text tower, the feature ``caption (D,)``; and the digest of the input.
    """
    given = golden_input(model, seed)
    golden = {"embedding": model.vector(model.forward_features(*given)).contiguous()}
    if model.text_tower is not None and (text := model.prepare_text([[CAPTION] * len(model.modalities)])) is not None:
        golden["caption"] = text[0, 0].contiguous()
    return golden, given.digest()


def write_golden(folder: Path) -> None:
    """Load a checkpoint folder and write its golden embedding beside the weights."""
    golden, digest = compute_golden(_load(folder))
    made = {"version": __version__, "torch": str(torch.__version__)}
    write_tensors(folder / GOLDEN, golden, {"seed": SEED, "input_sha256": digest, **made})


def _load(folder: Path) -> ReIDModel:
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and thrown away
        return create_model(f"local-dir:{folder}").eval()


def verify_checkpoint(source: str | Path, cache_dir: str | None = None) -> list[Finding]:
    """Compare a checkpoint folder with the proof it carries: the files' hashes, the golden input and its embedding.

    The embedding is computed on the CPU. On the processor that wrote it the values agree to a few last bits; another
    one, or another version of torch, may add in another order and so move a token over a sampling threshold. A row
    passes that is off by at most ``TOLERANCE`` (1e-3) of its length.

    Args:
        source: Folder, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME[@REVISION]``.
        cache_dir: Where downloads are kept.

    Returns:
        One finding for each file and each computed thing. All of them are ``ok`` in a folder of `save_pretrained`; in
        one of `save_model` the proof is reported as missing.

    Raises:
        FileNotFoundError: If there is no such folder, or it has no config.json.
    """
    place = str(source)
    repo = place.removeprefix("hf-hub:")
    folder = download(repo, cache_dir) if repo != place else user_path(place.removeprefix("local-dir:"))
    if not (folder / CONFIG).is_file():
        load_config(folder)  # says what a folder needs
    findings = _compare_hashes(folder)
    broken = [name for name, ok, note in findings if not ok and name != SUMS and note != _UNLISTED]
    problem = f"because of {', '.join(broken)}" if broken else ""
    if not problem:
        try:
            return findings + _compare_embedding(folder)
        except (ValueError, OSError) as error:
            problem = str(error)
    return [*findings, Finding("golden embedding", False, f"not computed: {problem}")]


def _compare_hashes(folder: Path) -> list[Finding]:
    try:
        sums = read_sums(folder)
    except ValueError as error:
        return [Finding(SUMS, False, str(error))]
    findings = [] if (folder / SUMS).is_file() else [Finding(SUMS, False, "missing")]
    for name in dict.fromkeys((CONFIG, WEIGHTS, GOLDEN, *sums)):
        if not (folder / name).is_file():
            findings.append(Finding(name, False, "missing"))
        elif name not in sums:
            findings.append(Finding(name, False, _UNLISTED))
        else:
            same = sha256(folder / name) == sums[name]
            findings.append(Finding(name, same, f"SHA-256 {'is' if same else 'differs from'} the one in {SUMS}"))
    return findings


def _compare_embedding(folder: Path) -> list[Finding]:
    try:
        stored, recorded = read_tensors(folder / GOLDEN)
        seed = int(recorded["seed"])
    except (KeyError, TypeError, ValueError) as error:
        return [Finding(GOLDEN, False, f"damaged: {error}")]
    computed, digest = compute_golden(_load(folder), seed)
    same = recorded.get("input_sha256") == digest
    finding = Finding("golden input", same, f"its digest {'is' if same else 'differs from'} the stored one")
    return [finding, *(_compare(f"golden {name}", value, stored.get(name)) for name, value in computed.items())]


def _compare(name: str, value: Tensor, stored: Tensor | None) -> Finding:
    if stored is None:
        return Finding(name, False, f"missing in {GOLDEN}")
    if stored.shape != value.shape:
        return Finding(name, False, f"is {tuple(value.shape)}, the stored one {tuple(stored.shape)}")
    off = ((value - stored.float()).norm(dim=-1) / stored.float().norm(dim=-1).clamp_min(1e-12)).max().item()
    return Finding(name, off <= TOLERANCE, f"off by {off:.1e} of its length, allowed {TOLERANCE:.0e}")
