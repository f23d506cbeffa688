"""A model as one file that runs without this package, written only when it gives the model's embeddings."""

import copy
import importlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextreid._files import check_out_file, user_path, write_together
from nextreid.data import Sample
from nextreid.data.loader import make_loader
from nextreid.models import ReIDModel, as_reid_model
from nextreid.ops import use_backend
from nextreid.version import __version__

from .ablations import Condition
from .embedding import check_visible, eval_transform
from .int8 import Int8Report, check_set, compare, rank_agreement

_logger = logging.getLogger(__name__)

MIN_COSINE = 0.999  # and of the rank agreement
_SIZES = (1, 2, 7, 14)  # of the batches of synthetic samples
_MOST = 128  # samples of the check: for each of them all pairs of the others are compared
_APART = 1e-4  # two cosines nearer to each other than this have no order

Inputs = dict[str, Tensor]
Runner = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class ExportReport:
    """An exported file and how near it comes to the model.

    Attributes:
        path: The file.
        weights: The file ``NAME.data`` beside it with the weights, which an ONNX file of a large model has, or None.
        inputs: Names of the file's inputs.
        dim: Width F of the embedding.
        synthetic: Samples that the file and the model were compared on, in batches of 1, 2, 7 and the rest.
        real: Samples of a dataset that they were compared on.
        cosine: Lowest cosine of a sample's embedding by the file and by the model.
        rank_agreement: Of all triples of a sample and two others whose cosines differ by more than 1e-4, the share
            that the file puts in the model's order.
        int8: What a file in 8 bits loses on the samples of the check, or None.
    """

    path: Path
    weights: Path | None
    inputs: tuple[str, ...]
    dim: int
    synthetic: int
    real: int
    cosine: float
    rank_agreement: float
    int8: Int8Report | None = None


def export(
    model: nn.Module,
    out: str | Path,
    format: str = "onnx",
    *,
    text: bool | None = None,
    normalize: bool = True,
    check: Sequence[Sample] = (),
    int8: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model's embedding as one file, if the file computes what the model does.

    An ONNX file holds at most 2 GiB: the weights of a larger model go to a second file beside it, ``NAME.data``, which
    must keep its name. The two are replaced together.

    The file's inputs are ``images`` ``(B, M, 3, H, W)`` float32, normalised as its metadata says; ``present``
    ``(B, M)`` bool; and ``text``, what ``model.prepare_text`` gives, such as ``(B, M, D)``, zero for an absent caption.
    Its output is ``embedding`` ``(B, F)``. B is free, 1 included. Cameras are taken as unknown.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes; it is left as it is. The file computes in
            float32.
        out: File to write, by convention ``.onnx`` or ``.pt2``.
        format: ``"onnx"``, or ``"torch_export"`` for ``torch.export.load``.
        text: Whether the file has the input ``text``; without it no sample has a caption. None for whether the model
            reads captions.
        normalize: Whether each embedding has length 1.
        check: Samples to compare the embeddings of besides synthetic ones; the first 128 are taken, in 8 bits all of
            known identity, 2,000 at most.
        int8: Whether matrix products are in 8-bit integers, by ONNX Runtime's dynamic quantization: weights rounded by
            column, inputs by tensor, so that a vector depends on its batch a little. The file is written only if mAP
            and rank agreement on `check` lose at most 0.2 points and the embeddings do not collapse.
        overwrite: Whether a file there may be replaced.

    Returns:
        How near the file comes.

    Raises:
        FileExistsError: If the file exists and `overwrite` is False.
        ImportError: If ONNX is asked for and its packages are not installed.
        ValueError: If the format is unknown, or not ONNX for 8 bits, ``text`` is asked of a model that reads none, the
            model cannot be traced, or the file does not compute what the model does: then none is left.
    """
    model = as_reid_model(model)
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; allowed: {', '.join(FORMATS)}")
    if int8 and format != "onnx":
        raise ValueError(f"int8 goes with the format onnx, got {format!r}")
    checked = check_set(check) if int8 else check[:_MOST]
    if text and not model.uses_text:
        raise ValueError(f"{model.pretrained_cfg.architecture} reads no captions as it was built: export without text")
    path = user_path(out)
    check_out_file(path)
    weights = path.with_name(f"{path.name}.data")
    names = (weights.name, path.name) if format == "onnx" else (path.name,)
    if not overwrite and (there := [name for name in names[::-1] if path.with_name(name).exists()]):
        found = path.with_name(there[0])
        raise FileExistsError(f"{found} exists; name another file, or replace it (overwrite=True, --overwrite)")
    write, read = FORMATS[format]
    if format == "onnx":
        for package in ("onnxscript", "onnxruntime"):
            _package(package)
    module = _Embedding(model, normalize)
    text = model.uses_text if text is None else text
    synthetic = _synthetic(model, text)
    real = list(_batches(model, checked, text))
    with write_together(path.parent, names) as fresh:
        try:
            write(_traced(module, synthetic[1]), fresh / path.name, _metadata(model, text, normalize))
        except OSError:
            raise
        except Exception as error:  # tracers raise errors of many types
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{model.pretrained_cfg.architecture} cannot be exported as {format}: {reason}") from error
        if int8:
            _round_onnx(fresh / path.name)
        run = read(fresh / path.name)
        pairs = [_embeddings(module, run, batches, str(path)) for batches in (synthetic, real) if batches]
        del run  # Windows moves no file that is open
        results = [_compare(*pair) for pair in pairs]
        lost = compare(*pairs[-1], checked).check() if int8 else None
        for cosine, agreement in results:
            if lost is None and not (cosine >= MIN_COSINE and agreement >= MIN_COSINE):  # NaN fails too
                raise ValueError(
                    f"{path} was not written: its embeddings are not the model's (lowest cosine {cosine:.6f}, rank "
                    f"agreement {agreement:.6f}; both at least {MIN_COSINE}); try the other format: "
                    f"{', '.join(FORMATS)}"
                )
    count, of_check = (sum(len(batch["images"]) for batch in batches) for batches in (synthetic, real))
    large = weights if weights.name in names and weights.exists() else None
    cosine, agreement = map(min, zip(*results, strict=True))
    return ExportReport(path, large, tuple(synthetic[0]), model.num_features, count, of_check, cosine, agreement, lost)


class _Embedding(nn.Module):
    """What goes into the file: a model's copy on the CPU, without its text tower and its classifier."""

    no_text: Tensor | None

    def __init__(self, model: ReIDModel, normalize: bool) -> None:
        super().__init__()
        bare = copy.copy(model)
        unused = {"text_tower": None, **{name: nn.ModuleList() for name in model.of_identities}}
        bare._modules = {**model._modules, **unused}
        self.model = copy.deepcopy(bare).cpu().float().eval()
        with torch.no_grad():
            no_text = model.no_text()
        self.register_buffer("no_text", None if no_text is None else no_text.cpu().float())
        self.normalize = normalize
        self.eval()

    def forward(self, images: Tensor, present: Tensor, text: Tensor | None = None) -> Tensor:
        if text is None and self.no_text is not None:
            text = self.no_text.expand(images.shape[0], *self.no_text.shape[1:])
        embedding = self.model.pool(self.model.forward_features(images, text, present))
        return F.normalize(embedding, dim=1) if self.normalize else embedding


def _traced(module: nn.Module, example: Inputs) -> torch.export.ExportedProgram:
    # Kernels are for the machine at hand, and plain operations for every one. An example of one sample would fix B.
    size = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad(), use_backend("torch"):
        return torch.export.export(module, (), example, dynamic_shapes={name: {0: size} for name in example})


def _write_torch(program: torch.export.ExportedProgram, path: Path, metadata: str) -> None:
    buffer = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
    torch.export.save(program, buffer, extra_files={"nextreid.json": metadata})
    path.write_bytes(buffer.getbuffer())


def _read_torch(path: Path) -> Runner:
    with path.open("rb") as file:
        program = torch.export.load(file).module()
    return lambda batch: program(**batch)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: str) -> None:
    onnx = torch.onnx.export(program, dynamo=True, output_names=["embedding"], verbose=False)
    assert onnx is not None  # it is None without dynamo
    onnx.model.metadata_props["nextreid"] = metadata
    onnx.save(path)


def _round_onnx(path: Path) -> None:
    """Put the products by a matrix of weights into 8 bits; those by several at once have no kernel."""
    quantization, onnx = _package("onnxruntime.quantization"), _package("onnx")
    graph = onnx.load(path, load_external_data=False).graph
    matrices = {weight.name for weight in graph.initializer if len(weight.dims) == 2}
    nodes = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices]
    full = path.with_name(f"full.{path.name}")
    path.rename(full)
    settings = {"nodes_to_quantize": nodes, "per_channel": True, "weight_type": quantization.QuantType.QInt8}
    quantization.quantize_dynamic(full, path, **settings)
    full.unlink()
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)


def _read_onnx(path: Path) -> Runner:
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in batch.items()})[0])


Writer = Callable[[torch.export.ExportedProgram, Path, str], None]
FORMATS: dict[str, tuple[Writer, Callable[[Path], Runner]]] = {
    "onnx": (_write_onnx, _read_onnx),
    "torch_export": (_write_torch, _read_torch),
}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"ONNX files need {name}: pip install 'nextreid[export]', or use torch_export") from error


def _metadata(model: ReIDModel, text: bool, normalize: bool) -> str:
    cfg = model.pretrained_cfg
    facts: dict[str, Any] = {
        "architecture": cfg.architecture,
        "modalities": model.modalities,
        "img_size": model.img_size,
    }
    facts |= {name: getattr(cfg, name) for name in ("mean", "std", "interpolation")}
    facts |= {"text": text, "normalized": normalize}
    return json.dumps({**facts, "versions": {"nextreid": __version__, "torch": str(torch.__version__)}})


def _synthetic(model: ReIDModel, text: bool) -> list[Inputs]:
    """Batches of 1, 2, 7 and more samples, some without all modalities or captions."""
    generator = torch.Generator().manual_seed(0)
    samples, count = sum(_SIZES), len(model.modalities)
    images = torch.randn(samples, count, 3, *model.img_size, generator=generator)
    present = torch.rand(samples, count, generator=generator) < 0.7
    present[:, 0] |= ~present.any(dim=1)
    inputs = {"images": images, "present": present}
    if text:
        shape = _text(model, [["A caption."] * count]).shape[1:]
        features = F.normalize(torch.randn(samples, *shape, generator=generator), dim=-1)
        inputs["text"] = features * (torch.rand(samples, *shape[:-1], 1, generator=generator) < 0.8)
    parts = [tensor.split(_SIZES) for tensor in inputs.values()]
    return [dict(zip(inputs, rows, strict=True)) for rows in zip(*parts, strict=True)]


def _batches(model: ReIDModel, samples: Sequence[Sample], text: bool) -> Iterator[Inputs]:
    if not samples:
        return
    check_visible(samples, model.modalities, Condition())
    for batch in make_loader(samples, eval_transform(model), model.modalities, batch_size=16):
        inputs = {"images": batch.images, "present": batch.present}
        if text:
            inputs["text"] = _text(model, batch.captions)
        yield inputs


@torch.no_grad()
def _text(model: ReIDModel, captions: Sequence[Any]) -> Tensor:
    if model.text_tower is None and hasattr(model, "embed_dim"):  # its caption features are made elsewhere
        return torch.zeros(len(captions), len(model.modalities), model.embed_dim)
    text = model.prepare_text(captions)
    assert text is not None  # as it reads captions
    return text.float().cpu()


def _embeddings(module: nn.Module, run: Runner, batches: Sequence[Inputs], name: str) -> tuple[Tensor, Tensor]:
    """Embed with the model and with the file; ValueError if the file does not run or gives another shape."""
    found = []
    for batch in batches:
        try:
            found.append(run(batch))
        except Exception as error:  # runtimes raise errors of many types
            size, reason = len(batch["images"]), str(error).partition("\n")[0]
            raise ValueError(f"{name} was not written: it does not run on a batch of {size} ({reason})") from error
    with torch.no_grad():
        ours = torch.cat([module(**batch) for batch in batches])
    theirs = torch.cat(found)
    if theirs.shape != ours.shape:
        raise ValueError(f"{name} was not written: it gives {tuple(theirs.shape)}, the model {tuple(ours.shape)}")
    return ours, theirs


def _compare(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return the lowest cosine and the share of equal orders."""
    agreement = rank_agreement(ours, theirs, _APART)
    if math.isnan(agreement):
        _logger.warning("the model tells no two samples of the check apart: their order was not compared")
    return F.cosine_similarity(ours, theirs).min().item(), 1.0 if math.isnan(agreement) else agreement
