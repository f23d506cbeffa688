"""Images to vectors in one call: files, Pillow images, arrays and tensors."""

import copy
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor, nn

from nextreid._files import user_path
from nextreid.data import Image, ImageFile, Sample, SampleDataset, collate, open_image, split_sentences
from nextreid.data.image import Window, check_windows, through_window
from nextreid.models import as_reid_model, create_model

from .ablations import Condition
from .embedding import EmbedOptions, embed_batch, embedding_width, eval_transform
from .int8 import Int8Report, to_int8
from .provenance import warn_domain

ImageInput: TypeAlias = str | os.PathLike[str] | ImageFile | PILImage.Image | np.ndarray | Tensor
Caption: TypeAlias = str | Sequence[str] | None

# One sample in the model's order: M images that are not looked at yet, and M captions or none at all.
_Given: TypeAlias = tuple[tuple[Any, ...], tuple[tuple[str, ...], ...]]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DEEP = (
    "scale it to 0 ... 255 as uint8, or pass the file and say which raw values become black and white, as in "
    'window={"tir": (7000, 9000)}'
)

_logger = logging.getLogger(__name__)


class FeatureExtractor:
    """Turns images into vectors, with the resizing and the normalisation that belong to the model's weights.

    An image is a file (its name, a path, a `ImageFile`), a Pillow image, or a uint8 array or tensor of shape
    ``(H, W, 3)``, ``(3, H, W)``, or grey ``(H, W)``, ``(H, W, 1)``, ``(1, H, W)``. Pillow images are read as their
    files are: turned as EXIF says, palettes looked up, an alpha channel dropped. Grey becomes three equal channels.
    The channels of an array are red, green, blue: that OpenCV's frames are the other way round cannot be detected,
    convert them with ``frame[..., ::-1]``. Ambiguous input is rejected, whatever its values: numbers
    that are not uint8 (0 ... 1, 0 ... 255 or normalised?), channels that could come first or last, a fourth channel.

    The vectors are those of `extract`, to the bit where the batches are the same ones. A call changes nothing that
    another could see, so that threads may share an extractor; give a model to one extractor only.

    Args:
        model: A name or folder that `create_model` takes, such as ``"runs/x/best"``, a model, or a module that
            `nextreid.adapt` takes. A model is not copied: it is put into evaluation mode, and moved and cast on demand.
        device: Where to compute, such as ``"cuda"``; None stays where the model is, for a name the CPU.
        pretrained: Whether a name's weights are loaded; a model has its own.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, or torch's own, for the weights; None leaves them.
            ``"int8"`` takes a copy whose large layers multiply in 8-bit integers on the CPU, see `to_int8`.
        normalize: Whether vectors have length 1; then ``a @ b`` is the cosine of two of them.
        batch_size: Samples of a forward pass.
        embedding: Which of the vectors that ``model.embeddings`` names; None for the default.
        window: For images of more than 8 bits the raw values by modality that become black and white, as in
            ``{"tir": (7000, 9000)}``; see `ImageFile`. It holds for files.
        check: For ``"int8"`` samples of known identities, not those of training, that 8 bits are checked on.

    Attributes:
        model: The model; its ``num_features`` is the length D of the vectors.
        modalities: Names of the images, in the model's order.
        int8: What 8 bits lose on the check set, or None.

    Raises:
        ValueError: If the name, an argument or a weight does not fit, a modality is named ``captions``, or 8 bits lose
            more than 0.2 points of mAP or rank agreement on the check set.
        FileNotFoundError: If a folder, a file or a repository does not exist; see `create_model`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        device: torch.device | str | None = None,
        *,
        pretrained: bool = True,
        dtype: torch.dtype | str | None = None,
        normalize: bool = True,
        batch_size: int = 64,
        embedding: str | None = None,
        window: Mapping[str, Window] | None = None,
        check: Sequence[Sample] | None = None,
    ) -> None:
        self._options = EmbedOptions(batch_size, embedding=embedding)
        rounds = dtype in ("int8", torch.int8)
        torch_dtype = torch.float32 if rounds else _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if dtype is not None and torch_dtype not in _DTYPES.values():
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, int8, got {dtype!r}")
        if check is not None and not rounds:
            raise ValueError("a check set is for dtype='int8' alone: leave check out")
        if isinstance(model, str | os.PathLike):
            model = create_model(model, pretrained=pretrained)
            weights = model.pretrained_cfg
            if pretrained and not (weights.file or weights.hf_hub_id):
                _logger.warning(
                    "%s has pretrained towers and was not trained to tell identities apart: load a trained checkpoint, "
                    "such as 'runs/x/best'",
                    weights.architecture,
                )
        self.model = as_reid_model(model).to(device=device, dtype=torch_dtype).eval()
        self.int8: Int8Report | None = None
        if rounds:
            self.model, self.int8 = to_int8(self.model, check or (), replace(self._options, progress=False))
        warn_domain(self.model)
        self.modalities = self.model.modalities
        if "captions" in self.modalities:
            raise ValueError(f"a modality cannot be named 'captions' here; the modalities are {self.modalities}")
        self.normalize = normalize
        self._windows = check_windows(window, self.modalities)
        self._transform = eval_transform(self.model)

    def __repr__(self) -> str:
        name, device = self.model.pretrained_cfg.architecture, next(self.model.parameters()).device
        return f"FeatureExtractor({name}, {'+'.join(self.modalities)}, {self.model.num_features} numbers, {device})"

    def with_options(self, options: EmbedOptions) -> "FeatureExtractor":
        """Return an extractor of the same model that embeds with other options and does not normalise."""
        other = copy.copy(self)
        other._options, other.normalize = replace(options, batch_size=self._options.batch_size), False
        return other

    def __call__(
        self, *given: Any, captions: Mapping[str, Caption] | None = None, **images: ImageInput | None
    ) -> Tensor:
        """Embed one sample, or a list of them.

        Args:
            *given: One sample as a table from modality to image, or as its M images in the model's order, None
                where one is missing; or a list of samples, each a table or a tuple of M images. A table may have its
                captions under ``captions``. For a model of one modality an image alone is a sample too.
            captions: Captions of the one sample by modality, each a string or a list of sentences; as many as there
                are, none at all by default.
            **images: The images of one sample by modality; a missing one is left out, or None.

        Returns:
            Float32 on the CPU: ``(D,)`` for one sample, ``(n, D)`` for a list of n, which may be empty.

        Raises:
            ValueError: If a sample has no image, a name is not the model's, an image can be read in more than one
                way or not at all, or a caption would not be read; the message names sample, modality and file.
        """
        if given and images:
            raise ValueError(f"either name all images, {_named(self.modalities)}, or none")
        only = given[0] if len(given) == 1 else None
        if isinstance(only, list | tuple):
            if captions is not None:
                raise ValueError(
                    f"the captions of a list belong to its samples: {{'{self.modalities[0]}': ..., 'captions': ...}}"
                )
            owners = [f" of sample {i}" for i in range(len(only))]
            return self._embed_given(list(map(self._arrange, only, owners)), owners)
        sample = only if isinstance(only, Mapping) else given or images
        return self._embed_given([self._arrange(sample, "", captions)], [""])[0]

    def encode(self, frame: ImageInput | Mapping[str, ImageInput | None], boxes: Any) -> Tensor:
        """Embed the objects of a frame, as trackers ask for.

        Args:
            frame: A table from modality to image, all of one size and of the same view; for a model of one modality
                the image alone will do.
            boxes: ``(n, 4)`` numbers, array or tensor: left, upper, right and lower edge in pixels; or what has them as
                its ``xyxy``: ``Detections`` of supervision, ``Results`` and ``Boxes`` of Ultralytics. Of rows with
                more columns, as BoxMOT has them, pass ``rows[:, :4]``. What lies outside the frame is cut off; a pixel
                that a box covers in part belongs to it.

        Returns:
            ``(n, D)`` float32 on the CPU, in the order of the boxes; n may be 0.

        Raises:
            ValueError: If the frame would be rejected as a sample, its images differ in size, or a box is not a
                number or covers no part of the frame; the message has its index, counted from 0.
        """
        sources, captions = self._arrange(frame, "")
        if any(captions):
            raise ValueError(
                "encode reads no captions: one for all boxes of a frame says nothing; leave 'captions' out"
            )
        frames = [
            image
            if image is None or isinstance(image, np.ndarray)
            else np.asarray(open_image(image, "", m).convert("RGB"))
            for m, image in zip(self.modalities, self._images(sources, ""), strict=True)
        ]
        sizes = {m: f.shape[1::-1] for m, f in zip(self.modalities, frames, strict=True) if f is not None}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{m} {width} x {height}" for m, (width, height) in sizes.items())
            raise ValueError(f"the images of a frame must show the same view in one size, got {found}: align them")
        crops = (
            tuple(None if f is None else f[upper:lower, left:right] for f in frames)
            for left, upper, right, lower in _edges(boxes, *next(iter(sizes.values())))
        )
        return self._embed((Sample(f"box {i}", -1, -1, -1, images) for i, images in enumerate(crops)), text=False)

    def _arrange(self, sample: Any, owner: str, captions: Mapping[str, Caption] | None = None) -> _Given:
        """Bring a sample into the model's order; its images are not touched."""
        if not isinstance(sample, Mapping):
            row = tuple(sample) if isinstance(sample, list | tuple) else (sample,)
            if len(row) != len(self.modalities):
                raise ValueError(
                    f"images without names{owner} must be one for each of {self.modalities}, got {len(row)}: name "
                    f"those that there are, {_named(self.modalities)}; a list is one of samples"
                )
            sample = dict(zip(self.modalities, row, strict=True))
        if unknown := [name for name in sample if name not in (*self.modalities, "captions")]:
            raise ValueError(f"unknown modality {', '.join(map(repr, unknown))}{owner}; there are: {self.modalities}")
        images = tuple(sample.get(modality) for modality in self.modalities)
        if all(source is None for source in images):
            raise ValueError(f"no image{owner}: give one or more of {', '.join(self.modalities)}")
        if "captions" in sample:
            if captions is not None:
                raise ValueError("captions were given twice, with the sample and beside it")
            captions = sample["captions"]
        return images, () if captions is None else self._read(captions, images, owner)

    def _read(self, captions: Any, images: tuple[Any, ...], owner: str) -> tuple[tuple[str, ...], ...]:
        if not isinstance(captions, Mapping):
            raise ValueError(
                f"captions{owner} must be a table by modality, such as {{'{self.modalities[0]}': 'A red coat.'}}, got "
                f"{type(captions).__name__}"
            )
        if unknown := sorted(set(captions) - set(self.modalities), key=str):
            raise ValueError(f"captions{owner} of unknown modalities {unknown}; there are: {self.modalities}")
        rows: list[tuple[str, ...]] = []
        for modality, source in zip(self.modalities, images, strict=True):
            caption = captions.get(modality)
            if caption is None or isinstance(caption, str):
                rows.append(split_sentences(caption or ""))
            elif isinstance(caption, list | tuple) and all(isinstance(part, str) for part in caption):
                rows.append(tuple(caption))
            else:
                raise ValueError(f"the {modality} caption{owner} must be a string or a list of sentences")
            if rows[-1] and source is None:
                raise ValueError(f"a {modality} caption{owner} without the {modality} image is not read: leave it out")
        if not any(rows):
            return ()
        if not self.model.uses_text:
            raise ValueError(f"{self.model.pretrained_cfg.architecture} reads no captions: leave them out")
        return tuple(rows)

    def _embed_given(self, given: Sequence[_Given], owners: Sequence[str]) -> Tensor:
        samples = (
            Sample(owner.rpartition(" ")[2], -1, -1, -1, tuple(self._images(sources, owner)), captions)
            for (sources, captions), owner in zip(given, owners, strict=True)
        )
        return self._embed(samples, text=any(captions for _, captions in given))

    def _embed(self, samples: Iterator[Sample], *, text: bool) -> Tensor:
        """Embed samples; they are made, and their images opened, batch by batch."""
        model = self.model
        if model.training:
            raise ValueError("the model is in training mode: call model.eval() before features are extracted again")
        device = next(model.parameters()).device
        parts = [torch.empty(0, embedding_width(model, self._options))]
        while some := list(itertools.islice(samples, self._options.batch_size)):
            dataset = SampleDataset(some, self._transform, self.modalities)
            batch = collate([dataset[i] for i in range(len(some))]).to(device)
            parts += embed_batch(model, batch, [Condition(text)], self._options)
        vectors = torch.cat(parts)
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def _images(self, sources: tuple[Any, ...], owner: str) -> Iterator[Image | None]:
        """Turn images as users give them into those that samples have."""
        for modality, source in zip(self.modalities, sources, strict=True):
            yield None if source is None else self._image(source, modality, f"the {modality} image{owner}")

    def _image(self, source: Any, modality: str, what: str) -> Image:
        if isinstance(source, ImageFile):
            return source
        if isinstance(source, str | os.PathLike):
            return through_window(user_path(source), self._windows.get(modality))
        if isinstance(source, PILImage.Image):
            return _from_pillow(source, what)
        if isinstance(source, np.ndarray | Tensor):
            return _from_array(source, what)
        raise ValueError(
            f"{what} is a {type(source).__name__}, expected a file's name or path, a Pillow image, or a uint8 array "
            "or tensor; encoded bytes are opened by PIL.Image.open(io.BytesIO(data))"
        )


def _from_pillow(source: PILImage.Image, what: str) -> np.ndarray:
    if source.mode.startswith(("I", "F")):
        raise ValueError(f"{what} has more than 8 bits (mode {source.mode}): {_DEEP}")
    try:
        return np.asarray(ImageOps.exif_transpose(source).convert("RGB"))
    except Exception as error:  # it may have been opened only, and turn out damaged now
        raise ValueError(f"cannot read {what}: {error}") from error


def _from_array(array: np.ndarray | Tensor, what: str) -> np.ndarray:
    """Return the pixels ``(H, W, 3)`` or ``(H, W)`` of an array that can be read in one way only."""
    dtype, shape = str(array.dtype).removeprefix("torch."), tuple(array.shape)
    if dtype != "uint8":
        hint = _DEEP
        if "float" in dtype:
            hint = "its range could be 0 ... 1, 0 ... 255 or normalised; pass (x * 255).round() of the first as uint8"
        elif dtype == "bool":
            hint = "pass x * 255 as uint8 if True is white"
        raise ValueError(f"{what} holds {dtype}, expected uint8 pixels of 0 ... 255, not normalised: {hint}")
    if 0 in shape:
        raise ValueError(f"{what} is empty: its shape is {shape}")
    first, last = (len(shape) == 3 and shape[axis] in (1, 3) for axis in (0, -1))
    if first and last:
        raise ValueError(
            f"{what} has shape {shape}: its channels could be the first axis or the last; pass a Pillow image, as by "
            "PIL.Image.fromarray of (H, W, 3)"
        )
    if len(shape) != 2 and not (first or last):
        raise ValueError(
            f"{what} has shape {shape}, expected (H, W, 3), (3, H, W) or grey (H, W); drop a fourth channel, and pass "
            "several images as a list of samples"
        )
    pixels = array.cpu().numpy() if isinstance(array, Tensor) else array
    pixels = np.moveaxis(pixels, 0, -1) if first else pixels
    return pixels[..., 0] if pixels.shape[2:] == (1,) else pixels


def _edges(boxes: Any, width: int, height: int) -> np.ndarray:
    """Return boxes ``(n, 4)`` in whole pixels inside a frame."""
    expected = "boxes must be (n, 4) numbers: left, upper, right and lower edge in pixels"
    if not hasattr(boxes, "xyxy"):
        boxes = getattr(boxes, "boxes", boxes)  # of Ultralytics' Results
    boxes = getattr(boxes, "xyxy", boxes)
    try:
        table = boxes.detach().cpu().double().numpy() if isinstance(boxes, Tensor) else np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}; {error}") from error
    if table.size == 0:
        return np.empty((0, 4), np.int64)
    if table.ndim != 2 or table.shape[1] != 4:
        raise ValueError(f"{expected}; got shape {table.shape}")
    inside = table.clip(0, (width, height, width, height))
    bad = np.isnan(table).any(1) | (inside[:, :2] >= inside[:, 2:]).any(1)
    if bad.any():
        number = int(bad.argmax())
        raise ValueError(
            f"{int(bad.sum())} of {len(table)} boxes cover no part of the {width} x {height} frame, first box {number} "
            f"with left, upper, right, lower {table[number].tolist()}; leave them out"
        )
    return np.concatenate([np.floor(inside[:, :2]), np.ceil(inside[:, 2:])], axis=1).astype(np.int64)


def _named(modalities: Sequence[str]) -> str:
    return ", ".join(f"{modality}=..." for modality in modalities)
