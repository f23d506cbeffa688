"""Procedural persons, rendered to samples: the dataset ``synthetic-persons``, and its folders on disk."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextreid._files import write_json, write_whole
from nextreid._names import unknown

from ..captioning import Answers
from ..data.captions import MODALITY_CODES
from ..data.datasets.registry import register_dataset
from ..data.rng import seeded_rng
from ..data.sample import MODALITIES, ReIDDataset, Sample
from .captioner import FIELDS, ask_captioners, compose_person, confident, merge_answers, true_answers
from .config import PROFILES, PersonsConfig
from .drawing import draw_occluder, draw_person
from .figure import PARTS, part_map
from .identity import Identity, make_identity, pool_pids
from .scene import Frame, Visit, make_camera, make_frame, make_visit, visited_cameras
from .sensors import photograph

_LOG = logging.getLogger(__name__)
POOLS = ("pretrain", "train", "test")

_CONSTANT = {name: max(field.guess, key=field.guess.__getitem__) for name, field in FIELDS.items()}


@dataclass(frozen=True)
class SyntheticPersons:
    """Rendered persons.

    Attributes:
        config: The settings that reproduce them.
        dataset: Train, and test as query and gallery; protocol ``"synthetic-persons"`` (camera rule).
        pretrain: Samples of the third pool, for an image-text tower; empty unless requested.
    """

    config: PersonsConfig
    dataset: ReIDDataset = field(repr=False)
    pretrain: tuple[Sample, ...] = field(default=(), repr=False)


def synthetic_persons(
    profile: str = "tiny",
    *,
    seed: int = 0,
    splits: Sequence[str] = ("train", "test"),
    workers: int = 0,
    **overrides: Any,
) -> SyntheticPersons:
    """Render a multi-spectral person re-identification dataset with captions and exact ground truth.

    Every sample is a function of the settings, its identity, camera and frame number alone: neither the other
    identities nor `workers` change a byte of it.

    Args:
        profile: ``"tiny"`` (64 x 32, 24 + 16 identities), ``"small"`` (128 x 64, 100 + 60) or ``"full"``
            (256 x 128, 400 + 200).
        seed: Seed of everything.
        splits: Which of ``"train"``, ``"test"``, ``"pretrain"`` to render; the others stay empty.
        workers: Processes that render; 0 renders in this one.
        **overrides: Any other field of `PersonsConfig`, such as ``night=0.5``.

    Returns:
        The persons. Images are ``(H, W, 3)`` uint8 arrays, NIR and TIR grey. A sample's `truth` holds ``attributes``,
        ``view``, ``held``, ``night``, ``light``, ``twin`` (pid or -1), ``parts`` (``(H, W)`` uint8 indices into
        `PARTS`), ``visibility`` and ``hidden`` (pixels of each part in sight and behind an occluder) and ``answers``
        (of the simulated captioners, merged, with confidence, for each modality).

    Raises:
        KeyError: If the profile is unknown.
        ValueError: If a split or setting is unknown or out of range; the message names it.
    """
    if profile not in PROFILES:
        raise KeyError(f"unknown profile {profile!r}; choose one of {sorted(PROFILES)}")
    requested = [splits] if isinstance(splits, str) else list(splits)
    if wrong := [split for split in requested if split not in POOLS]:
        raise ValueError(f"splits must be among {POOLS}, got {wrong}")
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be a number of processes from 0 up, got {workers!r}")
    fields = [setting.name for setting in dataclasses.fields(PersonsConfig)]
    if wrong := sorted(set(overrides) - set(fields)):
        raise ValueError(unknown("setting of synthetic persons", wrong, fields))
    config = dataclasses.replace(PROFILES[profile], seed=seed, **overrides)
    pools = {pool: _render_pool(config, pool, workers) if pool in requested else () for pool in POOLS}
    height, width = config.img_size
    note = f"procedural, generator version {config.version}, seed {config.seed}, {height}x{width}"
    name = "synthetic-persons"  # of the dataset and of its protocol
    train, test = pools["train"], pools["test"]
    cameras = {camid: str(camid + 1) for camid in range(config.cameras)}
    dataset = ReIDDataset(name, MODALITIES, "person", name, train, test, test, (note,), {"camid": cameras})
    return SyntheticPersons(config=config, dataset=dataset, pretrain=pools["pretrain"])


def render_identity(config: PersonsConfig, pid: int) -> list[Sample]:
    """Render all samples of one identity, sorted by key."""
    identity = make_identity(config, pid)
    visits = {camid: make_visit(config, pid, camid) for camid in visited_cameras(config, pid)}
    return [
        render_sample(config, identity, visit, make_frame(config, visit, pid, camid, number), camid, number)
        for camid, visit in visits.items()
        for number in range(config.frames_per_visit)
    ]


def render_sample(
    config: PersonsConfig, identity: Identity, visit: Visit, frame: Frame, camid: int, number: int
) -> Sample:
    """Draw, photograph and caption frame `number` of a visit to camera `camid`, counted from 0."""
    scale = make_camera(config.seed, camid).scale
    labels = draw_person(identity, frame, scale, config.img_size)
    beside = None
    if (other := frame.bystander) is not None:
        who = make_identity(config, other.pid)
        pose = dataclasses.replace(frame, yaw=other.yaw, phase=other.phase, held="none")
        seen = dataclasses.replace(pose, dx=other.dx, zoom=other.zoom)
        beside = who.body, draw_person(who, seen, scale, config.img_size)
    unoccluded = _count(part_map(labels))
    if frame.occluder is not None:
        labels = draw_occluder(labels, frame.occluder)
    parts = part_map(labels)
    visible = _count(parts)
    hidden = {part: max(0, unoccluded[part] - visible[part]) for part in PARTS[1:-1]}
    key = (identity.pid, camid, number)
    answers = ask_captioners(config, identity, visit, frame, key, visible, hidden)
    merged = merge_answers(answers, config.caption_merge)
    return Sample(
        key=f"{identity.pid:06d}_cam{camid + 1}_{int(visit.night)}_{number:02d}.jpg",
        pid=identity.pid,
        camid=camid,
        sceneid=-1,
        images=photograph(config, identity.body, labels, visit, frame, key, beside),
        captions=_captions(config, true_answers(identity, visit, frame), merged),
        truth={
            "attributes": dict(identity.attributes),
            "view": frame.view,
            "held": frame.held,
            "night": visit.night,
            "light": frame.light,
            "twin": identity.twin,
            "parts": parts,
            "visibility": visible,
            "hidden": hidden,
            "answers": merged,
        },
    )


def _captions(config: PersonsConfig, truth: dict[str, str], answers: dict[str, Answers]) -> tuple[tuple[str, ...], ...]:
    if config.caption_source == "empty":
        return ()
    if config.caption_source in ("exact", "constant"):
        values = truth if config.caption_source == "exact" else _CONSTANT
        return tuple(compose_person(values, modality) for modality in MODALITIES)
    return tuple(compose_person(confident(answers[m], config.caption_floor), m) for m in MODALITIES)


def _count(parts: np.ndarray) -> dict[str, int]:
    return dict(zip(PARTS, np.bincount(parts.ravel(), minlength=len(PARTS)).tolist(), strict=True))


def _render_pool(config: PersonsConfig, pool: str, workers: int) -> tuple[Sample, ...]:
    pids = pool_pids(config, pool)
    render = partial(render_identity, config)
    identities: Iterable[list[Sample]]
    if workers and len(pids) > 1:
        with ProcessPoolExecutor(workers) as processes:
            identities = list(processes.map(render, pids, chunksize=max(1, len(pids) // (8 * workers))))
    else:
        identities = map(render, pids)
    samples = [sample for identity in identities for sample in identity]
    if config.caption_source == "shuffled":
        order = seeded_rng("persons", config.seed, "shuffle", pool).permutation(len(samples))
        samples = [
            dataclasses.replace(sample, captions=samples[donor].captions)
            for sample, donor in zip(samples, order.tolist(), strict=True)
        ]
    _LOG.info("rendered %d samples of %d identities (%s)", len(samples), len(pids), pool)
    return tuple(samples)


@register_dataset("synthetic-persons")
def make_synthetic_persons(profile: str = "tiny", *, seed: int = 0, **options: Any) -> ReIDDataset:
    """Render the procedural persons; see `synthetic_persons` for the arguments."""
    return synthetic_persons(profile, seed=seed, **options).dataset


def write_folder_layout(dataset: ReIDDataset, root: str | Path) -> Path:
    """Write a dataset in the folder layout of RGBNT201, for any reader of it.

    Images go to ``root/{train_171,test}/{RGB,NI,TI}/KEY`` and captions to ``root/{train,test}_{RGB,NI,TI}.json``;
    ``load_dataset("rgbnt201", root, captions=root)`` reads both back. Images are JPEG of quality 95 where the key
    ends so, hence a little lossy.

    Args:
        dataset: Persons whose images are arrays and whose keys are file names, such as `synthetic_persons` renders.
        root: Folder to fill; created if missing.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder already holds images in that layout.
        ValueError: If a modality has no folder in that layout, or an image is no array.
    """
    root = Path(root)
    if wrong := [modality for modality in dataset.modalities if modality not in MODALITY_CODES]:
        raise ValueError(f"the RGBNT201 layout has folders for {sorted(MODALITY_CODES)}, not for {wrong}")
    for folder in ("train_171", "test"):
        if (root / folder).exists():
            raise FileExistsError(f"{root / folder} exists already; choose an empty folder, old images would mix in")
    for split, folder, samples in (("train", "train_171", dataset.train), ("test", "test", dataset.gallery)):
        for m, modality in enumerate(dataset.modalities):
            code = MODALITY_CODES[modality]
            target = root / folder / code
            target.mkdir(parents=True)
            for sample in samples:
                image = sample.images[m]
                if isinstance(image, np.ndarray):
                    jpeg = sample.key.lower().endswith((".jpg", ".jpeg"))
                    options = {"format": "JPEG", "quality": 95, "subsampling": 0} if jpeg else {"format": "PNG"}
                    write_whole(target / sample.key, partial(Image.fromarray(image).save, **options))
                elif image is not None:
                    raise ValueError(f"{modality} image of {sample.key!r} is no array, only those are written")
            captions = {sample.key: " ".join(sample.captions[m]) for sample in samples if sample.captions}
            if captions:
                entries = [{"item": key, "description": text} for key, text in captions.items() if text]
                write_json(root / f"{split}_{code}.json", entries)
    return root
