"""A gallery and its model: images become entries, images and words become queries."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nextreid._files import user_path
from nextreid._names import show
from nextreid._progress import progress_bar
from nextreid.data import Sample
from nextreid.data.image import image_path
from nextreid.data.sample import LabelNames, repeated_keys
from nextreid.retrieval import Entry, Gallery
from nextreid.retrieval.gallery_reader import GalleryReader

from .ablations import Condition
from .embedding import EmbedOptions, embed_samples, embedding_width, encode_words, joint_width, reads_text
from .extraction import open_embeddings
from .feature_extractor import FeatureExtractor
from .provenance import weights_digest

OnKnown = Literal["raise", "skip", "replace"]
Attributes = Callable[[Sample], Mapping[str, Any]]

_AT_ONCE = 256  # samples of one `Gallery.add`
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Added:
    """What `add_samples` did.

    Attributes:
        entries: How many were added.
        identities: Of how many identities.
        skipped: How many were there already.
    """

    entries: int
    identities: int
    skipped: int


class GalleryEncoder:
    """Turns images and words into vectors of a gallery, and rejects galleries of other weights.

    Args:
        model: What `FeatureExtractor` takes, or one, of float32 weights.
        device: Where to compute.
        embedding: Which of the model's vectors; None for the default.
        text: Whether the captions of images are read.
        words: Whether vectors of the space that images and words share follow.

    Raises:
        ValueError: The model has no such embedding or space.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | FeatureExtractor,
        device: torch.device | str | None = None,
        *,
        embedding: str | None = None,
        text: bool = False,
        words: bool = False,
    ) -> None:
        checkpoint = str(user_path(model)) if isinstance(model, str | os.PathLike) else None
        if checkpoint and Path(checkpoint).exists():
            checkpoint = os.path.abspath(checkpoint)
        if not isinstance(model, FeatureExtractor):
            model = FeatureExtractor(model, device, normalize=False, embedding=embedding)
        self.model = model.model
        if embedding is not None and embedding not in self.model.embeddings:
            known = ", ".join(self.model.embeddings)
            raise ValueError(f"{type(self.model).__name__} has no embedding {embedding!r}; there are: {known}")
        if words and not joint_width(self.model):
            name = self.model.pretrained_cfg.architecture
            raise ValueError(f"{name} has no space that images and words share: leave words out (--words)")
        self.options = EmbedOptions(embedding=embedding, words=words)
        self._extractor = model.with_options(self.options)
        self.about: dict[str, Any] = {
            "width": embedding_width(self.model, replace(self.options, words=False)),
            "words": joint_width(self.model) if words else 0,
            "modalities": list(self.model.modalities),
            "model": self.model.pretrained_cfg.architecture,
            "digest": weights_digest(self.model),
            "embedding": embedding,
            "text": text,
            "checkpoint": checkpoint,
        }

    def check(self, gallery: GalleryReader) -> None:
        """Raise ValueError unless its vectors are those of a gallery; where that has no record, it is not asked."""
        for name, what in (("model", "model"), ("digest", "weights of digest"), ("embedding", "embedding")):
            ours, theirs = self.about[name], gallery.about.get(name)
            if theirs is not None and ours != theirs:
                raise ValueError(
                    f"gallery {gallery.folder} is of {what} {show(theirs)}, this is {show(ours)}: their vectors "
                    "cannot be compared; open it with the model that it was made with, or make another gallery"
                )
        for name in ("width", "words", "modalities"):
            if self.about[name] != gallery.about[name]:
                ours, theirs = show(self.about[name]), show(gallery.about[name])
                raise ValueError(f"gallery {gallery.folder} has {name} {theirs}, the model {ours}")

    def encode(self, query: Any) -> tuple[Tensor, list[tuple[str, ...]]]:
        """Vectors of what `FeatureExtractor` takes, and the modalities that each sample shows."""
        several = isinstance(query, list | tuple) and not self._is_sample(query)
        samples = list(query) if several else [query]
        if not samples:
            raise ValueError("there is no image to search with")
        if not self.about["text"] and any(isinstance(s, Mapping) and s.get("captions") for s in samples):
            raise ValueError("the gallery's vectors were made without captions: leave those of the query out")
        shown = [self._shown(sample) for sample in samples]
        vectors = self._extractor(samples)
        return vectors if several else vectors[0], shown

    def encode_words(self, texts: Sequence[str]) -> Tensor:
        """Vectors ``(n, words)`` of texts."""
        return encode_words(self.model, texts)

    def average_modalities(self, vectors: Tensor) -> Tensor:
        """See `ReIDModel.average_modalities`."""
        return self.model.average_modalities(vectors)

    def _is_sample(self, query: Any) -> bool:
        """Whether a tuple is one sample, an image for each modality, rather than samples."""
        return isinstance(query, tuple) and not any(isinstance(part, Mapping | tuple | list) for part in query)

    def _shown(self, sample: Any) -> tuple[str, ...]:
        if isinstance(sample, Mapping):
            return tuple(name for name in self.model.modalities if sample.get(name) is not None)
        images = sample if isinstance(sample, list | tuple) else [sample]
        return tuple(name for name, image in zip(self.model.modalities, images, strict=False) if image is not None)


def create_gallery(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] | nn.Module | FeatureExtractor,
    *,
    device: torch.device | str | None = None,
    embedding: str | None = None,
    text: bool = False,
    words: bool = False,
) -> Gallery:
    """Make an empty gallery for the vectors of a model and open it for writing.

    Args:
        folder: New or empty; or ``lancedb:URI``, see `LanceGallery`.
        model: A name or folder that `create_model` takes, with weights, or a model.
        device: Where to compute.
        embedding: Which of the model's vectors; None for the default.
        text: Whether the captions of images are read, where the model reads captions.
        words: Whether words can be searched for: keeps a second vector of each entry, in the space that the model's
            image and text towers share.

    Raises:
        OSError: The folder holds something, or cannot be written.
        ValueError: The model has no such embedding or space.

    Example:
        >>> with create_gallery("people", "next_tiny") as gallery:  # doctest: +SKIP
        ...     samples, names = read_samples("photos", gallery.modalities)  # doctest: +SKIP
        ...     add_samples(gallery, samples, label_names=names)  # doctest: +SKIP
    """
    encoder = GalleryEncoder(model, device, embedding=embedding, text=text, words=words)
    kind, place = _kind(folder)
    about = dict(encoder.about)
    if kind is not Gallery and encoder.model.modality_width:  # an engine compares what it holds, so it holds the means
        about["mean"] = encoder.average_modalities(torch.zeros(1, about["width"])).shape[1]
    return kind.create(place, encoder=encoder, **about)


def load_gallery(folder: str | os.PathLike[str], *, write: bool = False) -> Gallery:
    """Open a gallery without its model: queries are vectors or conditions. See `open_gallery` and `Gallery`."""
    kind, place = _kind(folder)
    return kind(place, write=write)


def _kind(folder: str | os.PathLike[str]) -> tuple[type[Gallery], str]:
    """What stands behind a folder's name: ``lancedb:URI`` is a database."""
    name = os.fspath(folder)
    if not name.startswith("lancedb:"):
        return Gallery, name
    from nextreid.retrieval.gallery_lance import LanceGallery

    return LanceGallery, name.removeprefix("lancedb:")


def open_gallery(
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] | nn.Module | FeatureExtractor | None = None,
    *,
    write: bool = False,
    device: torch.device | str | None = None,
) -> Gallery:
    """Open a gallery together with its model, so that images and words can be searched for.

    Args:
        folder: Of the gallery; or ``lancedb:URI``, see `LanceGallery`.
        model: The model or where it is; None: where it was when the gallery was made.
        write: Whether to change it.
        device: Where to compute.

    Raises:
        FileNotFoundError: There is no gallery, or its model is no longer there.
        ValueError: The model is another one, or has other weights.

    Example:
        >>> gallery = open_gallery("people")  # doctest: +SKIP
        >>> gallery.search({"rgb": "a.png"}, k=3)  # doctest: +SKIP
    """
    with load_gallery(folder) as gallery:
        about = gallery.about
    source = model if model is not None else about.get("checkpoint")
    if source is None:
        raise ValueError(
            f"gallery {folder} does not say where its model {show(about.get('model'))} is: name it (model=)"
        )
    options = {"embedding": about.get("embedding"), "text": about.get("text", False), "words": bool(about["words"])}
    kind, place = _kind(folder)
    return kind(place, write=write, encoder=GalleryEncoder(source, device, **options))


def add_samples(
    gallery: Gallery,
    samples: Iterable[Sample],
    *,
    label_names: LabelNames | None = None,
    attributes: Attributes | None = None,
    known: OnKnown = "raise",
    options: EmbedOptions = EmbedOptions(),
) -> Added:
    """Embed samples and add them, some at a time: what was added when it is stopped stays.

    Args:
        gallery: What `create_gallery` or `open_gallery` gave, open for writing.
        samples: With images in the order of the gallery's modalities.
        label_names: What identities and cameras are called; see `ReIDDataset`.
        attributes: Gives the metadata of a sample; its ``time`` is the entry's.
        known: What to do about keys that are there already: ``"raise"``, ``"skip"`` or ``"replace"`` them.
        options: Batch size, loading processes, progress.

    Raises:
        ValueError: A sample has no image, two share a key, or a key is there already.
    """
    encoder = gallery.encoder
    if not isinstance(encoder, GalleryEncoder):
        raise ValueError("images need the model: open the gallery with nextreid.open_gallery")
    given = list(samples)
    if repeated := repeated_keys(sample.key for sample in given):
        raise ValueError(f"key {show(repeated[0])} names more than one sample; make keys unique")
    there = [sample.key for sample in given if sample.key in gallery] if known != "replace" else []
    if there and known == "raise":
        raise ValueError(
            f"{len(there)} of {len(given)} keys are in gallery {gallery.folder} already, such as {show(there[0])}; "
            "skip or replace them (known=, --known)"
        )
    left_out = set(there)
    rest = [sample for sample in given if sample.key not in left_out]
    condition = Condition(text=bool(gallery.about.get("text")) and reads_text(encoder.model, rest, Condition()))
    embed = replace(options, embedding=encoder.options.embedding, words=encoder.options.words, progress=False)
    names, entries = label_names or {}, list[Entry]()
    with progress_bar(None, "add", "sample", shown=options.progress, total=len(rest)) as bar:
        for start in range(0, len(rest), _AT_ONCE):
            some = rest[start : start + _AT_ONCE]
            vectors = embed_samples(encoder.model, some, condition, embed)
            made = [_entry(sample, gallery.modalities, names, attributes) for sample in some]
            gallery.add(vectors, made, replace=known == "replace")
            entries += made
            bar.update(len(some))
    return Added(len(rest), len({entry.identity for entry in entries} - {None}), len(there))


def add_extraction(gallery: Gallery, folder: str | os.PathLike[str], *, known: OnKnown = "raise") -> Added:
    """Add what `nextreid.extract` wrote, if it was made by the gallery's model and weights, in the same way.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: It is damaged, of another model or other weights, or a key is there already.
    """
    vectors, rows, made = open_embeddings(os.fspath(folder))
    wanted = {
        "embedding": gallery.about.get("embedding"),
        "text": gallery.about.get("text", False),
        "after_neck": False,
    }
    for name, value in wanted.items():
        if made.get(name) != value:
            raise ValueError(
                f"{folder} was made with {name} {show(made.get(name))}, gallery {gallery.folder} is {show(value)}"
            )
    if made.get("digest") is None and gallery.about["digest"] is not None:
        raise ValueError(f"{folder} does not say what weights it was made with: extract it again")
    there = {i for i, row in enumerate(rows()) if known == "skip" and row["key"] in gallery}
    kept = vectors[[i for i in range(len(vectors)) if i not in there]] if there else vectors
    names = set[str]()

    def entries() -> Iterator[Entry]:
        for i, row in enumerate(rows()):
            if i not in there:
                entry = Entry(row["key"], row["pid"], row["camid"], modalities=tuple(row["present"].split("+")))
                names.update([str(entry.identity)] if entry.identity is not None else [])
                yield entry

    if len(kept):
        gallery.add(kept, entries(), model=made["model"], digest=made.get("digest"), replace=known == "replace")
    return Added(len(kept), len(names), len(there))


def _entry(sample: Sample, modalities: Sequence[str], names: LabelNames, attributes: Attributes | None) -> Entry:
    def label(field: str, value: int) -> str | None:
        return names.get(field, {}).get(value, str(value)) if value >= 0 else None

    paths = {m: image_path(image) for m, image in zip(modalities, sample.images, strict=True)}
    metadata = {"scene": label("sceneid", sample.sceneid)} if sample.sceneid >= 0 else {}
    metadata |= dict(attributes(sample)) if attributes else {}
    return Entry(
        sample.key,
        label("pid", sample.pid),
        label("camid", sample.camid),
        metadata.pop("time", None),
        tuple(m for m, image in zip(modalities, sample.images, strict=True) if image is not None),
        {m: os.path.abspath(path) for m, path in paths.items() if path is not None},
        {m: caption for m, caption in zip(modalities, sample.captions, strict=False) if caption},
        metadata,
    )
