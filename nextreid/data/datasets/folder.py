"""A folder of images as it lies on a disk: modalities and identities are folders, where there are any."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..._names import first_few
from ..image import Window
from ..labels import number_labels
from ..pattern import read_folder
from ..sample import MODALITIES, ReIDDataset, as_modalities
from ..split import split_identities
from .registry import register_dataset

SPLITS = ("train", "query", "gallery", "test", "val", "bounding_box_train", "bounding_box_test")
_SPECTRA = ("color", "colour", "depth", "fir", "infrared", "ir", "lwir", "mwir", "swir", "thermal", "visible")


@register_dataset("folder")
def load_folder(
    root: str | Path,
    *,
    modalities: Sequence[str] = MODALITIES,
    window: Mapping[str, Window] | None = None,
    object_type: str = "object",
    train: float | None = None,
    seed: int = 0,
) -> ReIDDataset:
    """Read a folder of images, each of which is query and gallery alike.

    A folder named like a modality, anywhere on the path, says which one (see `read_folder`); where no folder is, all
    images are of the first modality, or of that which `root` is named like. The first of the other folders names the
    identity: ``anna/rgb/1.jpg``, ``rgb/anna/1.jpg`` and ``anna/1.jpg`` are all of anna. Images without such a folder
    are of no known identity.

    Args:
        root: The folder.
        modalities: Order of the images.
        window: Windows for images of more than 8 bits, by modality; see `ImageFile`.
        object_type: What is re-identified.
        train: Share of the identities to train on, see `split_identities`; None keeps all images as query and gallery.
        seed: Of that draw.

    Returns:
        The dataset, named by the folder, with the protocol "none": a query ignores itself alone.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If two images are one, or a folder is named like a split or like a spectrum that is not declared.
    """
    modalities = as_modalities(modalities)
    samples = read_folder(root, modalities, window, nested=True, plain=True)
    folders = {part for sample in samples for part in Path(sample.key).parts[:-1]}
    firsts = [Path(sample.key).parts[0] if len(Path(sample.key).parts) > 1 else "" for sample in samples]
    if splits := sorted(name for name in set(firsts) if name.lower() in SPLITS):
        raise ValueError(
            f"{root}: {first_few(splits)} are splits, not identities: name one of them alone, or say how its files are "
            "named with --pattern, see 'pattern' in docs/data.md"
        )
    if spectra := sorted(name for name in folders if name.lower() in _SPECTRA):
        raise ValueError(
            f"{root}: {first_few(spectra)} looks like a modality; name such folders {', '.join(modalities)}, or "
            f"declare the name, such as modalities={(modalities[0], spectra[0].lower())!r}"
        )
    pids, names = number_labels("pid", [(s.key, first) for s, first in zip(samples, firsts, strict=True)])
    labelled = tuple(replace(sample, pid=pid) for sample, pid in zip(samples, pids, strict=True))
    notes = [f"{unknown} of {len(pids)} samples have no folder of an identity"] if (unknown := pids.count(-1)) else []
    name, label_names = Path(root).expanduser().resolve().name, {"pid": names} if names else {}
    if name.lower() in _SPECTRA and not any(any(sample.images[1:]) for sample in samples):
        notes.append(f"{name} looks like a modality, the images are taken as {modalities[0]}: rename it if not")
    if train is not None:
        made = split_identities(
            labelled, modalities=modalities, train=train, rule="none", seed=seed, name=name, object_type=object_type
        )
        return replace(made, notes=(*notes, *made.notes), label_names=label_names)
    return ReIDDataset(name, modalities, object_type, "none", (), labelled, labelled, tuple(notes), label_names)
