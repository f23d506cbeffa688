"""The settings of the procedural persons and vehicles in JSON-able records, and three profiles of each."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from ..data.sample import MODALITIES

EVIDENCE_PARTS = ("upper", "lower", "footwear", "backpack", "handbag", "suitcase")
VERSION = "1"
EVIDENCE = ("all", *(f"{part}:{modality}" for part in EVIDENCE_PARTS for modality in MODALITIES))
CAPTION_SOURCES = ("noisy", "exact", "shuffled", "constant", "empty")
MAX_IDENTITIES = 100_000  # per pool: the file names hold six digits and the pools must not meet
MAX_CAMERAS = 9  # the published file names hold one digit
MAX_FRAMES = 100  # and two digits

_FRACTIONS = (
    "night occlusion flare clutter bystander view_gap twins view_persistence nir_corr caption_noise caption_floor"
).split()
# the least and the most of each setting; those with whole limits are integers
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("num_pretrain", "num_train", "num_test"), (0, MAX_IDENTITIES)),
    "cameras": (2, MAX_CAMERAS),
    "frames_per_visit": (1, MAX_FRAMES),
    "seed": (0, 2**63 - 1),
    **dict.fromkeys(_FRACTIONS, (0.0, 1.0)),
    **dict.fromkeys(("blur", "structure", "heat_sep"), (0.0, 3.0)),
}


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings that persons and vehicles have in common.

    The defaults follow the published captions of RGBNT201 and MSVR310 where these allow it (fractions of night, views
    and attributes, agreement of answers); they are not tuned on a model.

    Attributes:
        img_size: Height and width in pixels.
        num_pretrain: Identities for pretraining an image-text tower, disjoint from the two other pools.
        num_train: Training identities.
        num_test: Test identities.
        cameras: Number of cameras; an identity visits two or three of them.
        frames_per_visit: Frames of one identity at one camera.
        night: Fraction of visits that happen at night.
        occlusion: Fraction of frames in which something stands in front.
        flare: Fraction of frames with a lamp shining into the RGB and NIR cameras.
        clutter: Density of things behind the object, new ones in each frame, that look like garments or panels to the
            three sensors; 0 for none, 1 for twelve of them.
        view_gap: 0: cameras see all sides, 1: the first, third, … see backs alone and the others fronts.
        blur: Strength of defocus and motion blur; 0 for none, 1 is realistic.
        view_persistence: Probability that a frame keeps the visit's main view; 0 draws each frame's view independently.
        twins: Fraction of identities that have all described attributes in common with exactly one other.
        structure: Spread of build between identities; 0 gives everybody, or every vehicle of a type, the same build.
        nir_corr: 0: a material's NIR reflectance is independent of its colour, 1: it follows the grey level.
        heat_sep: How far clothes and bags, or a vehicle's panels, differ in temperature; 0: not at all.
        caption_source: ``noisy`` simulated captioners; ``exact`` the truth; baselines: ``shuffled`` noisy captions
            exchanged between the samples of a split, ``constant`` one caption for all, ``empty`` none.
        caption_noise: Fraction of what captioners would have seen that they guess instead; 0 is the published level.
        caption_floor: Answers with a confidence below this are left out.
        caption_merge: Merge some answers (bags, glasses, held things; plate, spoiler, roof rack) over the modalities by
            the highest confidence.
        seed: Seed of all random draws.
        version: Version of the generator; only the current one can be built.

    Raises:
        ValueError: If a value is outside its range; the message names the field.
    """

    kind: ClassVar[str]  # what is drawn; part of the key of every random stream

    img_size: tuple[int, int]
    num_pretrain: int = 48
    num_train: int = 24
    num_test: int = 16
    cameras: int = 4
    frames_per_visit: int = 6
    night: float = 0.7
    occlusion: float = 0.2
    flare: float = 0.1
    clutter: float = 0.0
    view_gap: float = 0.0
    blur: float = 1.0
    view_persistence: float = 0.9
    twins: float = 0.4
    structure: float = 1.0
    nir_corr: float = 0.0
    heat_sep: float = 1.0
    caption_source: str = "noisy"
    caption_noise: float = 0.0
    caption_floor: float = 0.15
    caption_merge: bool = True
    seed: int = 0
    version: str = VERSION

    def __post_init__(self) -> None:
        size = tuple(self.img_size)
        if len(size) != 2 or not all(_is_int(n) and 16 <= n <= 1024 for n in size):
            raise ValueError(f"img_size must be two integers (height, width) from 16 to 1024, got {self.img_size!r}")
        object.__setattr__(self, "img_size", size)  # JSON gives a list back
        for name, (low, high) in _RANGES.items():
            if not hasattr(self, name):
                continue
            value, what = getattr(self, name), "an integer" if isinstance(low, int) else "a number"
            number = _is_int(value) or (what == "a number" and isinstance(value, float))
            if not number or not low <= value <= high:  # NaN is not between any two
                raise ValueError(f"{name} must be {what} from {low} to {high}, got {value!r}")
        if self.caption_source not in CAPTION_SOURCES:
            raise ValueError(f"caption_source must be one of {CAPTION_SOURCES}, got {self.caption_source!r}")
        for name in ("caption_merge", "plates"):
            if not isinstance(getattr(self, name, True), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.version != VERSION:
            raise ValueError(
                f"version must be {VERSION!r}, the one this release builds, got {self.version!r}; "
                "install the release that wrote this configuration to get its pixels back"
            )

    @property
    def extent(self) -> int:
        """Pixels of the side along which the object lies: what blur and relief are measured by."""
        return self.img_size[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary that the class and JSON both take."""
        return dataclasses.asdict(self) | {"img_size": list(self.img_size)}


@dataclass(frozen=True)
class PersonsConfig(SyntheticConfig):
    """Settings of the procedural multi-spectral persons; see `SyntheticConfig` for those not named here.

    Attributes:
        bystander: Fraction of frames in which somebody of a pool of their own stands beside the person, as near; who
            stands on which side is chance, so that only a caption tells whom the sample is of.
        evidence: ``"all"``, or the one place in which identities differ, such as ``"upper:nir"``: all have the same
            attributes, body, colours and temperatures, but for what one modality sees of one part's materials.

    Raises:
        ValueError: If a value is outside its range; the message names the field.
    """

    kind = "persons"

    img_size: tuple[int, int] = (64, 32)
    bystander: float = 0.0
    evidence: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evidence not in EVIDENCE:
            raise ValueError(f"evidence must be one of {EVIDENCE}, got {self.evidence!r}")


@dataclass(frozen=True)
class VehiclesConfig(SyntheticConfig):
    """Settings of the procedural multi-spectral vehicles; see `SyntheticConfig` for those not named here.

    Attributes:
        plates: Whether licence plates have characters; False leaves them blank, as some published sets mask them.

    Raises:
        ValueError: If a value is outside its range; the message names the field.
    """

    kind = "vehicles"

    img_size: tuple[int, int] = (32, 64)
    plates: bool = True

    @property
    def extent(self) -> int:
        """The width: a vehicle lies."""
        return self.img_size[1]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


PROFILES: dict[str, PersonsConfig] = {
    "tiny": PersonsConfig(img_size=(64, 32), num_pretrain=48, num_train=24, num_test=16),
    "small": PersonsConfig(img_size=(128, 64), num_pretrain=200, num_train=100, num_test=60),
    "full": PersonsConfig(img_size=(256, 128), num_pretrain=800, num_train=400, num_test=200),
}
"""Persons by name: seconds, half a minute, and some minutes (with 3 GB of pixels for train and test)."""
VEHICLE_PROFILES: dict[str, VehiclesConfig] = {
    name: VehiclesConfig(
        img_size=config.img_size[::-1],
        num_pretrain=config.num_pretrain,
        num_train=config.num_train,
        num_test=config.num_test,
    )
    for name, config in PROFILES.items()
}
"""As many vehicles in as many pixels, which lie."""
