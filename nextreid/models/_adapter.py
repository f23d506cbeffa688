"""A plain module as a re-identification model, so that training, evaluation and export take it."""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .._schema import listed, number
from ..towers.image import img_size_kind
from ._base import Captions, Features, ReIDModel, SampleCaption
from ._pretrained import PretrainedCfg

_logger = logging.getLogger(__name__)
_THREE = listed(number(-1e3, 1e3), 3, 3, "one value or one for each of three channels")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


class AdaptedModel(ReIDModel):
    """A plain module behind the model contract; see `adapt`, which makes it. The module is ``module``."""

    def __init__(self, module: nn.Module, modalities: Sequence[str], img_size: Sequence[int]) -> None:
        super().__init__(modalities)
        self.module = module
        self.img_size = img_size_kind("img_size", img_size)
        parameters = inspect.signature(module.forward).parameters.values()
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        names = {parameter.name for parameter in parameters}
        self.keywords = {name for name in ("text", "present", "camid") if takes_any or name in names}
        prepare = getattr(module, "prepare_text", None)
        self._prepare: Callable[..., Tensor | None] | None = prepare if callable(prepare) else None
        self.uses_text = "text" in self.keywords and self._prepare is not None

    def prepare_text(self, captions: Captions, sample: SampleCaption | None = None) -> Tensor | None:
        """What the module's ``prepare_text(captions)`` gives; in training of one draw of each caption's sentences."""
        if self._prepare is None or not self.uses_text:
            return None
        if sample is not None:
            captions = [[sample(row, m, 0) for m in range(len(self.modalities))] for row in range(len(captions))]
        return self._prepare(captions)

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """The images and cameras as they are: nothing is known of the module's parts."""
        return {"images": images} if camid is None else {"images": images, "camid": camid}

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Run the module: ``embedding (B, F)``. The images of absent modalities are zeros."""
        images = encoded["images"]
        if present is not None:
            images = images.masked_fill(~present[..., None, None, None], 0)
            if "present" not in self.keywords and not torch.compiler.is_compiling() and not present.all():
                _warn_blind(type(self.module).__name__)
        given = {"text": text, "present": present, "camid": encoded.get("camid")}
        embedding = self.module(images, **{name: given[name] for name in given if name in self.keywords})
        if not isinstance(embedding, Tensor) or embedding.dim() != 2 or embedding.shape[0] != images.shape[0]:
            found = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
            raise ValueError(
                f"{type(self.module).__name__} must map images (B, M, 3, H, W) to an embedding (B, F), "
                f"got {found} for {tuple(images.shape)}"
            )
        return {"embedding": embedding}

    def pool(self, features: Features) -> Tensor:
        """What the module gave."""
        return features["embedding"]


def adapt(
    module: nn.Module,
    modalities: Sequence[str] = ("rgb", "nir", "tir"),
    img_size: Sequence[int] = (256, 128),
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    num_features: int | None = None,
) -> AdaptedModel:
    """Make a plain module a model that can be trained, evaluated, extracted with and exported.

    Args:
        module: Maps images ``(B, M, 3, H, W)`` to an embedding ``(B, F)``. Where its ``forward`` takes them by name, it
            also gets ``present``, bool ``(B, M)``, ``camid (B,)``, and ``text``, what the module's method
            ``prepare_text(captions)`` makes of the captions ``[B][M]``. Without ``present`` an absent image is zeros.
        modalities: Names of the modalities, in the order of the images' axis M.
        img_size: Height and width in pixels.
        mean: Mean of the images' normalisation, one value or one for each colour channel.
        std: Standard deviation, likewise.
        num_features: Width F; None finds it by embedding one blank sample.

    Returns:
        The model; it shares the module's parameters.

    Raises:
        ValueError: If the module does not map a blank sample to an embedding, or has no parameter.

    Example:
        >>> model = adapt(MyModule(), modalities=("rgb", "tir"), img_size=(256, 128))
        >>> train(model, dataset, recipe, "runs/mine")
    """
    module = unwrap(module)
    name = type(module).__name__
    reference = next(module.parameters(), None)
    if reference is None:
        raise ValueError(f"{name} has no parameter")
    model = AdaptedModel(module, modalities, img_size)
    if num_features is None:
        blank = torch.zeros(1, len(model.modalities), 3, *model.img_size, device=reference.device)
        present = torch.ones(blank.shape[:2], dtype=torch.bool, device=blank.device)
        try:
            with torch.no_grad(), evaluating(module):
                features = model.forward_tokens({"images": blank.to(reference.dtype)}, None, present)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{name} does not embed a blank sample {tuple(blank.shape)}: {error}") from error
        num_features = features["embedding"].shape[1]
    model.num_features = num_features
    model.embeddings = {"embedding": num_features}
    model.pretrained_cfg = _cfg(model, name, mean=_channels(mean), std=_channels(std))
    model.reset_classifier(0)
    return model.train(module.training)


def unwrap(model: Any) -> Any:
    """The module inside of ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and averages of weights."""
    while isinstance(model, nn.Module) and not isinstance(model, ReIDModel):
        parts = dict(model.named_children())
        inner = parts.get("_orig_mod")  # of torch.compile
        if isinstance(model, _WRAPPERS) or isinstance(parts.get("module"), ReIDModel):  # such as timm's ModelEma
            inner = parts["module"]
        if inner is None:
            break
        model = inner
    return model


def as_reid_model(model: Any) -> ReIDModel:
    """Take a model as it is, out of what wraps it, and adapt a module that has ``modalities`` and ``img_size``.

    Raises:
        ValueError: If it is neither; the message names `adapt`.
    """
    model = unwrap(model)
    if isinstance(model, ReIDModel):
        if not hasattr(model, "pretrained_cfg"):  # built by its class, not by `create_model`
            model.pretrained_cfg = _cfg(model, type(model).__name__)
        return model
    if isinstance(model, nn.Module) and hasattr(model, "modalities") and hasattr(model, "img_size"):
        settings = {name: getattr(model, name) for name in ("mean", "std", "num_features") if hasattr(model, name)}
        return adapt(model, model.modalities, model.img_size, **settings)  # type: ignore[arg-type]
    raise ValueError(
        f"{type(model).__name__} is not a re-identification model: a module that maps images (B, M, 3, H, W) to "
        "embeddings (B, F) becomes one by nextreid.adapt(module, modalities=..., img_size=...)"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside; every part gets its mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): a part that the user keeps in evaluation mode stays there.
        for module, mode in modes:
            module.training = mode


def _cfg(model: ReIDModel, architecture: str, **fields: Any) -> PretrainedCfg:
    cfg = PretrainedCfg(architecture, input_size=(3, *model.img_size), modalities=model.modalities, paper_ids=None)
    return cfg.replace(**fields)


def _channels(value: float | Sequence[float]) -> tuple[float, ...]:
    values = (value,) * 3 if isinstance(value, int | float) else value
    return tuple(map(float, _THREE("mean and std", values)))


@cache
def _warn_blind(name: str) -> None:
    _logger.warning(
        "%s does not take `present`: an absent modality is an image of zeros to it, which it cannot tell from a black "
        "one; give its forward a keyword present (B, M)",
        name,
    )
