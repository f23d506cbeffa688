"""Procedural persons and vehicles, rendered to samples: two datasets, and their folders on disk."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextreid._files import write_json, write_whole
from nextreid._names import unknown

from ..data.captions import MODALITY_CODES
from ..data.datasets.registry import register_dataset
from ..data.rng import seeded_rng
from ..data.sample import MODALITIES, ReIDDataset, Sample
from .captioner import DESCRIPTIONS, ask_captioners, merge_answers, true_answers, write_captions
from .config import PROFILES, VEHICLE_PROFILES, SyntheticConfig
from .figure import PERSON, VEHICLE, Regions, draw_occluder
from .identity import Identity, pool_pids
from .person import make_person, person_materials
from .person_drawing import draw_person
from .scene import Frame, Visit, make_camera, make_frame, make_visit, view_of, visited_cameras
from .sensors import Material, material_table, photograph
from .vehicle import make_vehicle, vehicle_materials
from .vehicle_drawing import draw_vehicle

_LOG = logging.getLogger(__name__)
POOLS = ("pretrain", "train", "test")


@dataclass(frozen=True)
class _Kind:
    """What the generator of persons, or of vehicles, is made of; the rest is one."""

    profiles: Mapping[str, SyntheticConfig]
    regions: Regions
    make: Callable[[Any, int], Identity[Any]]
    draw: Callable[..., np.ndarray]
    materials: Callable[[Any, Visit, Frame], dict[str, Material]]
    know: Callable[[Identity[Any], Frame], dict[str, str]]  # what `truth` holds besides


_KINDS = {
    "persons": _Kind(
        PROFILES, PERSON, make_person, draw_person, person_materials, lambda person, frame: {"held": frame.state}
    ),
    "vehicles": _Kind(
        VEHICLE_PROFILES,
        VEHICLE,
        make_vehicle,
        draw_vehicle,
        vehicle_materials,
        lambda vehicle, frame: {"headlights": frame.state, "plate": vehicle.body.plate},
    ),
}


@dataclass(frozen=True)
class SyntheticDataset:
    """Rendered persons or vehicles.

    Attributes:
        config: The settings that reproduce them.
        dataset: Train, and test as query and gallery; protocol ``"synthetic-persons"`` or ``"synthetic-vehicles"``
            (camera rule).
        pretrain: Samples of the third pool, for an image-text tower; empty unless requested.
    """

    config: SyntheticConfig
    dataset: ReIDDataset = field(repr=False)
    pretrain: tuple[Sample, ...] = field(default=(), repr=False)


def synthetic_persons(
    profile: str = "tiny",
    *,
    seed: int = 0,
    splits: Sequence[str] = ("train", "test"),
    workers: int = 0,
    **overrides: Any,
) -> SyntheticDataset:
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
    return _synthetic("persons", profile, seed, splits, workers, overrides)


def synthetic_vehicles(
    profile: str = "tiny",
    *,
    seed: int = 0,
    splits: Sequence[str] = ("train", "test"),
    workers: int = 0,
    **overrides: Any,
) -> SyntheticDataset:
    """Render a multi-spectral vehicle re-identification dataset with captions and exact ground truth.

    The arguments, and all that holds for the samples, are those of `synthetic_persons`; images lie: 32 x 64, 64 x 128
    or 128 x 256. In `truth`, ``headlights`` (``"off"``, ``"on"`` or ``"dimmed"``) stands in place of ``held``,
    ``plate`` has the characters of the licence plate, which no two vehicles share and no caption tells, and ``parts``
    holds indices into `VEHICLE_PARTS`.

    Example:
        ```python
        sample = synthetic_vehicles("small", num_train=1, num_test=0).dataset.train[0]
        sample.images[0].shape, sample.truth["attributes"]["vehicle_type"]
        ```
    """
    return _synthetic("vehicles", profile, seed, splits, workers, overrides)


def _synthetic(
    name: str, profile: str, seed: int, splits: Sequence[str], workers: int, overrides: Mapping[str, Any]
) -> SyntheticDataset:
    profiles = _KINDS[name].profiles
    if profile not in profiles:
        raise KeyError(f"unknown profile {profile!r}; choose one of {sorted(profiles)}")
    requested = [splits] if isinstance(splits, str) else list(splits)
    if wrong := [split for split in requested if split not in POOLS]:
        raise ValueError(f"splits must be among {POOLS}, got {wrong}")
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers must be a number of processes from 0 up, got {workers!r}")
    fields = [setting.name for setting in dataclasses.fields(profiles[profile])]
    if wrong := sorted(set(overrides) - set(fields)):
        raise ValueError(unknown(f"setting of synthetic {name}", wrong, fields))
    config = dataclasses.replace(profiles[profile], seed=seed, **overrides)
    pools = {pool: _render_pool(config, pool, workers) if pool in requested else () for pool in POOLS}
    height, width = config.img_size
    note = f"procedural, generator version {config.version}, seed {config.seed}, {height}x{width}"
    title = f"synthetic-{name}"  # of the dataset and of its protocol
    train, test = pools["train"], pools["test"]
    cameras = {camid: str(camid + 1) for camid in range(config.cameras)}
    schema = DESCRIPTIONS[name].schema
    dataset = ReIDDataset(title, MODALITIES, schema, title, train, test, test, (note,), {"camid": cameras})
    return SyntheticDataset(config=config, dataset=dataset, pretrain=pools["pretrain"])


def make_identity(config: SyntheticConfig, pid: int) -> Identity[Any]:
    """Build one person or vehicle."""
    return _KINDS[config.kind].make(config, pid)


def render_identity(config: SyntheticConfig, pid: int) -> list[Sample]:
    """Render all samples of one identity, sorted by key."""
    identity = make_identity(config, pid)
    visits = {camid: make_visit(config, pid, camid) for camid in visited_cameras(config, pid)}
    return [
        render_sample(config, identity, visit, make_frame(config, visit, pid, camid, number), camid, number)
        for camid, visit in visits.items()
        for number in range(config.frames_per_visit)
    ]


def render_sample(
    config: SyntheticConfig, identity: Identity[Any], visit: Visit, frame: Frame, camid: int, number: int
) -> Sample:
    """Draw, photograph and caption frame `number` of a visit to camera `camid`, counted from 0."""
    kind, camera = _KINDS[config.kind], make_camera(config.kind, config.seed, camid)
    regions = kind.regions

    def look(who: Identity[Any], frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels of a person or vehicle, and what the sensors see of them."""
        table = material_table(regions, kind.materials(who.body, visit, frame), visit.ambient)
        return kind.draw(who, frame, camera, config.img_size), table

    labels, table = look(identity, frame)
    beside = None
    if (other := frame.bystander) is not None:
        posed = dataclasses.replace(frame, yaw=other.yaw, phase=other.phase, dx=other.dx, zoom=other.zoom, state="none")
        beside = look(make_identity(config, other.pid), posed)
    unoccluded = regions.count(regions.part_map(labels))
    if frame.occluder is not None:
        labels = draw_occluder(regions, labels, frame.occluder)
    parts = regions.part_map(labels)
    visible = regions.count(parts)
    hidden = {part: max(0, unoccluded[part] - visible[part]) for part in regions.parts[1:-1]}
    key = (identity.pid, camid, number)
    merged = merge_answers(config, ask_captioners(config, identity, visit, frame, key, visible, hidden))
    return Sample(
        key=f"{identity.pid:06d}_cam{camid + 1}_{int(visit.night)}_{number:02d}.jpg",
        pid=identity.pid,
        camid=camid,
        sceneid=-1,
        images=photograph(config, labels, table, visit, frame, key, beside),
        captions=write_captions(config, true_answers(config, identity, visit, frame), merged),
        truth={
            "attributes": dict(identity.attributes),
            "view": view_of(config.kind, frame.yaw),
            **kind.know(identity, frame),
            "night": visit.night,
            "light": frame.light,
            "twin": identity.twin,
            "parts": parts,
            "visibility": visible,
            "hidden": hidden,
            "answers": merged,
        },
    )


def _render_pool(config: SyntheticConfig, pool: str, workers: int) -> tuple[Sample, ...]:
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
        order = seeded_rng(config.kind, config.seed, "shuffle", pool).permutation(len(samples))
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


@register_dataset("synthetic-vehicles")
def make_synthetic_vehicles(profile: str = "tiny", *, seed: int = 0, **options: Any) -> ReIDDataset:
    """Render the procedural vehicles; see `synthetic_vehicles` for the arguments."""
    return synthetic_vehicles(profile, seed=seed, **options).dataset


def write_folder_layout(dataset: ReIDDataset, root: str | Path) -> Path:
    """Write a dataset in the folder layout of RGBNT201, for any reader of it.

    Images go to ``root/{train_171,test}/{RGB,NI,TI}/KEY`` and captions to ``root/{train,test}_{RGB,NI,TI}.json``;
    ``load_dataset("rgbnt201", root, captions=root)`` reads both back. Images are JPEG of quality 95 where the key
    ends so, hence a little lossy.

    Args:
        dataset: Samples whose images are arrays and whose keys are file names, such as `synthetic_persons` renders.
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
