"""How a model is trained, as one flat value that fits in a JSON file; the published recipes by name."""

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import numpy as np

from nextreid._names import show, unknown
from nextreid.data.image_cache import SUFFIX

# What must hold for a number: lowest, highest, whether the lowest itself is allowed. None is allowed where it is the
# type's other half.
_RANGES: dict[str, tuple[float, float, bool]] = {
    field: bounds
    for bounds, fields in {
        (1, math.inf, True): "epochs eval_batch_size log_every",
        (2, math.inf, True): "num_ids num_instances",
        (0, math.inf, False): "lr_tower lr_new bias_lr grad_clip contrast_temperature",
        (0, math.inf, True): "weight_decay warmup_epochs warmup_start identity_weight triplet_weight margin pad "
        "coherence_weight center_margin_weight center_margin contrast_weight "
        "eval_every workers",
        (0, 1, True): "beta1 beta2 floor smoothing flip erase lr_noise drop_modality",
        (0, 1, False): "caption_keep_ratio caption_quality",
    }.items()
    for field in fields.split()
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run besides the model and the data.

    The defaults are the paper's values (Sec. 4.1) and, where it gives none, those that related methods (DeMo, IDEA)
    share.

    Attributes:
        name: The name that results carry.
        epochs: Passes of the identity sampler (related methods: 50).
        num_ids: P, identities of a batch (related methods: batch 64 with 8 images each).
        num_instances: K, samples of each identity in a batch.
        optimizer: ``"adam"`` (the paper; weight decay is coupled), ``"adamw"``, or ``"sgd"`` with momentum (TOP-ReID,
            EDITOR).
        lr_tower: Learning rate of the pretrained towers (the paper: 3.5e-6). Frozen parameters are left out.
        lr_new: Learning rate of every other trainable layer (DeMo, MambaPro: 3.5e-4).
        weight_decay: The paper: 1e-4.
        decay_all: Whether biases, norms and tables decay too, as in all related methods. ``False`` spares them.
        bias_lr: Factor of the learning rate of biases (related methods: 2), but for those of a tower whose rate is
            another than ``lr_new``.
        beta1: The paper's "momentum 0.9", which SGD takes too.
        beta2: Adam's second moment (0.999, the optimiser's default in all related methods).
        grad_clip: Largest norm of the gradient; None, as in all related methods, does not clip.
        schedule: ``"cosine"`` (related methods), ``"constant"``, or ``"step"``: a tenth from each of the ``milestones``
            on (ICPL-ReID); warm-up applies to all.
        milestones: Epochs at which ``"step"`` goes down, in ascending order.
        warmup_epochs: Linear warm-up (related methods: 10).
        warmup_start: Where the warm-up starts, as a factor of each group's learning rate (TOP-ReID, EDITOR, MambaPro:
            0.01).
        floor: Where the cosine ends, as a factor of each group's learning rate (related methods: 0.001).
        schedule_of: What ``warmup_start`` and ``floor`` are factors of: the learning rate of each ``"group"``, or
            ``lr_new`` for all of them (DeMo, whose tower starts above its rate).
        lr_noise: Largest relative change of every learning rate in an epoch, drawn from a normal distribution by the
            epoch alone (DeMo, IDEA: 0.67); 0 for none.
        identity_weight: Weight of the identity loss (related methods 0.25; Eq. 12 has 1).
        triplet_weight: Weight of the triplet loss.
        smoothing: Label smoothing of the identity loss (related methods: 0.1).
        margin: Hinge margin of the triplet loss; None is the soft margin (related methods).
        coherence_weight: Weight of the coherence of the modalities' class scores (HAMNet: 0.032), for models with a
            head for each modality, such as ``baseline_resnet50``.
        center_margin_weight: Weight of the margin between the modalities' centers (IEEE: 2), for the same models.
        center_margin: The squared distance that it keeps (IEEE: 1).
        contrast_weight: Weight of the contrast between the modalities' parts of the embedding (`modality_contrast`),
            which trains what a query in one modality and a gallery in another are compared by.
        contrast_temperature: Its divisor of the cosines.
        flip: Probability of a horizontal flip (related methods: 0.5).
        pad: Zero padding in pixels before the random crop (related methods: 10).
        erase: Probability of random erasing (related methods: 0.5).
        geometry: Whether the modalities of a sample share flip and crop. ``"shared"`` keeps patch positions aligned,
            which the modulation across modalities (Eq. 6) relies on; related methods draw ``"independent"``.
        eval_interpolation: Resampling of the evaluation's resize, which the trained model keeps: ``"same"`` as in
            training (the model's own), or ``"bilinear"`` after bicubic ones in training, as in related methods.
        text: Whether captions are read, in training and in the evaluations of the run.
        caption_keep_ratio: Probability that a sentence is kept when a caption is drawn (Eq. 4); None draws the number
            of sentences uniformly.
        caption_quality: Share of each caption that exists at all, in training and at test (Table 5).
        caption_unit: What ``caption_quality`` keeps or loses: a ``"sentence"`` or a ``"word"``.
        drop_modality: Probability that a modality of a training sample is hidden, image and caption; one stays always.
        amp: ``"bf16"`` autocasts the forward pass of the training; evaluation is always in float32.
        compile: Whether the training step runs through ``torch.compile``; it then rounds and drops features otherwise.
        eval_every: Epochs between evaluations, the last epoch included always (related methods: 1); 0 never evaluates.
        eval_batch_size: Samples of a batch in the evaluation.
        seed: Key of every random draw: sampling, augmentation, captions, dropout, the new classifier.
        workers: Processes that load images; the result does not depend on it.
        store: ``"off"`` decodes each image every time it is drawn, ``"memory"`` once before the first epoch, and a
            file name that ends in ``.store`` once and for all runs; the result does not depend on it.
        augment: ``"cpu"`` augments in the loading processes; ``"device"`` leaves it to the device, which draws other
            noise for erased boxes.
        log: Where the values of the training go: ``"jsonl"``, always, and ``"tensorboard"``, ``"wandb"``,
            ``"trackio"``, ``"mlflow"``; the result does not depend on it.
        log_every: Steps between two rows of the log; the last step of an epoch has one always.
    """

    name: str = "next"
    epochs: int = 50
    num_ids: int = 8
    num_instances: int = 8
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr_tower: float = 3.5e-6
    lr_new: float = 3.5e-4
    weight_decay: float = 1e-4
    decay_all: bool = True
    bias_lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    grad_clip: float | None = None
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = 10
    warmup_start: float = 0.01
    schedule_of: Literal["group", "new"] = "group"
    floor: float = 0.001
    lr_noise: float = 0.0
    identity_weight: float = 0.25
    triplet_weight: float = 1.0
    smoothing: float = 0.1
    margin: float | None = None
    coherence_weight: float = 0.0
    center_margin_weight: float = 0.0
    center_margin: float = 1.0
    contrast_weight: float = 0.0
    contrast_temperature: float = 0.1
    flip: float = 0.5
    pad: int = 10
    erase: float = 0.5
    geometry: Literal["shared", "independent"] = "shared"
    eval_interpolation: Literal["same", "bilinear"] = "same"
    text: bool = True
    caption_keep_ratio: float | None = None
    caption_quality: float = 1.0
    caption_unit: Literal["sentence", "word"] = "sentence"
    drop_modality: float = 0.0
    amp: Literal["off", "bf16"] = "bf16"
    compile: bool = False
    eval_every: int = 1
    eval_batch_size: int = 64
    seed: int = 0
    workers: int = 4
    store: str = "off"
    augment: Literal["cpu", "device"] = "cpu"
    log: tuple[Literal["jsonl", "tensorboard", "wandb", "trackio", "mlflow"], ...] = ("jsonl",)
    log_every: int = 50

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic | list):  # a frozen value is set once, as its own constructor does
                object.__setattr__(self, field.name, tuple(value) if isinstance(value, list) else value.item())
            if field.name == "log" and isinstance(value, str):
                object.__setattr__(self, "log", (value,))
            _check(field.name, field.type, getattr(self, field.name))
        if self.log[:1] != ("jsonl",):
            object.__setattr__(self, "log", ("jsonl", *(name for name in self.log if name != "jsonl")))
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule='step' goes down at milestones=, which no other schedule takes")
        if self.store not in ("off", "memory") and not self.store.endswith(SUFFIX):
            allowed = f"'off', 'memory', or the name of a file that ends in {SUFFIX}"
            raise ValueError(f"recipe field 'store' is {show(self.store)}; allowed: {allowed}")
        if self.store != "off" and self.eval_interpolation != "same":
            raise ValueError("a store keeps images resized once: set store='off' or eval_interpolation='same'")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that ``json.dumps`` takes and `from_dict` reads back."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from `to_dict`'s output; fields that are not given keep their defaults.

        Raises:
            ValueError: A field is unknown or its value is not allowed.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"a recipe is a mapping of its fields to values, got {show(fields)}")
        _check_names(fields)
        return cls(**fields)


def _check_names(fields: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(Recipe)]
    if wrong := set(fields) - set(known):
        raise ValueError(unknown("recipe field", wrong, known))


def _check(name: str, annotation: Any, value: Any) -> None:
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        raise ValueError(
            f"recipe field {name!r} is {show(value)}; allowed: {', '.join(map(repr, get_args(annotation)))}"
        )
    if get_origin(annotation) is Literal or (value is None and annotation == float | None):
        return
    if annotation == tuple[int, ...]:
        plain = isinstance(value, tuple) and all(type(epoch) is int and epoch > 0 for epoch in value)
        if not plain or list(value) != sorted(set(value)):
            raise ValueError(f"recipe field {name!r} is {show(value)}; it takes ascending epochs, such as [30, 50]")
        return
    if get_origin(annotation) is tuple:
        allowed = get_args(get_args(annotation)[0])
        if not isinstance(value, tuple) or sorted(map(str, value)) != sorted(set(allowed) & set(map(str, value))):
            choices = ", ".join(map(repr, allowed))
            raise ValueError(f"recipe field {name!r} is {show(value)}; allowed, each once: {choices}")
        return
    # JSON and the command line write 1 for 1.0; a bool is an int to Python but never meant as a number here.
    expected = int | float if annotation in (float, float | None) else annotation
    if not isinstance(value, expected) or isinstance(value, bool) != (annotation is bool):
        raise ValueError(
            f"recipe field {name!r} is {show(value)}; it takes {getattr(annotation, '__name__', annotation)}"
        )
    if name in _RANGES:
        low, high, closed = _RANGES[name]
        above = value >= low if closed else value > low
        if not above or value > min(high, sys.float_info.max):  # integers know no infinity
            bounds = f"{'at least' if closed else 'more than'} {low}"
            bounds += f" and at most {high}" if high < math.inf else " and finite"
            raise ValueError(f"recipe field {name!r} is {show(value)}; it must be {bounds}")


# What IDEA's code does on RGBNT201 and MSVR310, as its released log shows: one learning rate, a warm-up that starts at
# the absolute 3.5e-5 and falls, a floor of 3.5e-7, noise on the learning rate, a draw of flip and crop for each
# modality, and bilinear images at test after bicubic ones in training. NEXT states the same optimizer and rate.
_IDEA = Recipe(
    name="idea",
    lr_new=3.5e-6,
    warmup_start=10.0,
    floor=0.1,
    lr_noise=0.67,
    geometry="independent",
    eval_interpolation="bilinear",
)

# DeMo: IDEA's schedule, the tower at a rate of its own.
_DEMO = Recipe(
    name="demo",
    lr_tower=5e-6,
    bias_lr=2.0,
    warmup_start=0.1,
    schedule_of="new",
    lr_noise=0.67,
    geometry="independent",
    eval_interpolation="bilinear",
)

# TOP-ReID and EDITOR: SGD at one rate, both losses at weight 1; MSVR310 has few images and long trainings.
_TOPREID = Recipe(
    name="topreid",
    epochs=120,
    num_instances=16,
    optimizer="sgd",
    lr_tower=9e-3,
    lr_new=9e-3,
    bias_lr=2.0,
    identity_weight=1.0,
    geometry="independent",
    eval_interpolation="bilinear",
)
_TOPREID_MSVR310 = dataclasses.replace(
    _TOPREID, name="topreid-msvr310", epochs=1000, warmup_epochs=100, lr_tower=1e-3, lr_new=1e-3
)

# ICPL-ReID on RGBNT201; the prompts' rate there, 3.5e-4 without coupled decay of 5e-4 but of 1e-4, is the others' here.
_ICPL = Recipe(
    name="icpl",
    num_ids=16,
    num_instances=4,
    lr_tower=3e-4,
    lr_new=3e-4,
    bias_lr=2.0,
    weight_decay=5e-4,
    schedule="step",
    milestones=(30, 50),
    warmup_start=0.1,
    identity_weight=0.33,
    triplet_weight=0.33,
    smoothing=0.0,
    margin=0.3,
    geometry="independent",
    eval_interpolation="bilinear",
)

# MambaPro trains adapters, state spaces and cameras at one rate, beside a frozen tower.
_MAMBAPRO = Recipe(
    name="mambapro",
    epochs=60,
    num_ids=16,
    num_instances=4,
    lr_tower=3.5e-4,
    bias_lr=2.0,
    geometry="independent",
    eval_interpolation="bilinear",
)

_HTT = Recipe(
    name="htt",
    epochs=80,
    num_instances=4,
    optimizer="sgd",
    lr_tower=8e-3,
    lr_new=8e-3,
    bias_lr=2.0,
    warmup_epochs=5,
    floor=0.002,
    identity_weight=1.0,
    smoothing=0.0,
    geometry="independent",
    eval_interpolation="bilinear",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="next"),
        # Eq. 12: both losses at weight 1.
        Recipe(name="next-eq12", identity_weight=1.0),
        # Batch 16 x 128 on RGBNT100 in IDEA and STMI: eight identities of sixteen.
        Recipe(name="next-rgbnt100", num_instances=16),
        _IDEA,
        dataclasses.replace(_IDEA, name="idea-rgbnt100", num_instances=16),
        # IDEA has no WMVEID863, where most identities have few images: 64 in fours, as all who train on it.
        dataclasses.replace(_IDEA, name="idea-wmveid863", num_ids=16, num_instances=4),
        _DEMO,
        dataclasses.replace(_DEMO, name="demo-msvr310", num_ids=16, num_instances=4),
        dataclasses.replace(_DEMO, name="demo-rgbnt100", epochs=30, warmup_epochs=5, num_instances=16),
        _TOPREID,
        _TOPREID_MSVR310,
        dataclasses.replace(_TOPREID, name="editor", epochs=70, lr_tower=1e-3, lr_new=1e-3),
        dataclasses.replace(_TOPREID_MSVR310, name="editor-msvr310"),
        # ProxyTTT on RGBNT201, but for what it learns from the test images in the middle of its training.
        Recipe(
            name="proxyttt",
            epochs=70,
            lr_tower=3.5e-5,
            lr_new=3.5e-5,
            bias_lr=2.0,
            identity_weight=1.0,
            margin=0.8,
            geometry="independent",
            eval_interpolation="bilinear",
        ),
        _HTT,
        dataclasses.replace(_HTT, name="htt-rgbnt100", epochs=90, num_ids=16),
        _ICPL,
        dataclasses.replace(_ICPL, name="icpl-msvr310", lr_tower=3.5e-4, lr_new=3.5e-4, weight_decay=1e-4),
        dataclasses.replace(_ICPL, name="icpl-rgbnt100", lr_tower=3.5e-4, lr_new=3.5e-4, epochs=120),
        # Signal on RGBNT201. There the tower's rate falls from 3.5e-5 to 5e-6 in the warm-up; here it rises as all do.
        dataclasses.replace(
            _IDEA, name="signal", lr_tower=5e-6, lr_new=3.5e-4, bias_lr=2.0, warmup_start=0.1, floor=0.001
        ),
        _MAMBAPRO,
        dataclasses.replace(
            _MAMBAPRO, name="mambapro-rgbnt100", epochs=30, warmup_epochs=5, num_ids=8, num_instances=16
        ),
        # Not published: minutes on two CPU cores for the `*_tiny` models (64 x 32 pixels), trained from scratch, so
        # the tower learns at the rate of the new layers, and two pixels of padding are what ten are to 256 x 128. With
        # the loss weights of related methods such a tower stays where all distances are alike (triplet loss ln 2): the
        # identity loss leads here, and no box is erased from so few pixels.
        Recipe(
            name="tiny",
            epochs=20,
            num_instances=4,
            optimizer="adamw",
            lr_tower=1e-3,
            lr_new=1e-3,
            warmup_epochs=2,
            identity_weight=1.0,
            triplet_weight=0.05,
            pad=2,
            erase=0.0,
            amp="off",
            eval_every=5,
            workers=0,
        ),
    )
}

AUTHORS: dict[str, str] = {
    "rgbnt201": "idea",
    "msvr310": "idea",
    "rgbnt100": "idea-rgbnt100",
    "wmveid863": "idea-wmveid863",
}
"""The recipe by dataset that does what the authors of NEXT's family of methods do, quirks included."""


def get_recipe(name: str = "next", /, **overrides: Any) -> Recipe:
    """Return a named recipe with some of its fields replaced.

    Args:
        name: One of `RECIPES`.
        **overrides: Fields of `Recipe`, ``name`` included.

    Returns:
        The recipe; `RECIPES` itself stays as it is.

    Raises:
        KeyError: The name is unknown.
        ValueError: A field is unknown or its value is not allowed.
    """
    if name not in RECIPES:
        raise KeyError(unknown("recipe", name, sorted(RECIPES)))
    _check_names(overrides)
    return dataclasses.replace(RECIPES[name], **overrides)
