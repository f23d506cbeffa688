"""Attributes from a local network that gives probabilities, described by a small JSON file.

::

    {
      "name": "crossroad", "network": "person-attributes.onnx", "modalities": ["rgb"],
      "input": {"height": 160, "width": 80, "channels": "bgr"},
      "outputs": [
        {"field": "gender", "output": "453", "channels": [0], "values": ["male", "female"]},
        {"field": "upper_clothing", "output": "453", "channels": [7], "values": ["jacket", null]}
      ]
    }

The probabilities are the confidences. A value of null is what the vocabulary has no word for: its probability counts as
not known.
"""

import asyncio
import hashlib
import importlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from .._files import read_json
from .._names import show
from .._schema import choice, listed, number, optional, table, text, whole, word
from .client import Reply
from .decisions import Api
from .schema import Schema

_THREE = listed(number(-1e6, 1e6), 3, 3, "three numbers")
_INPUT = table(
    {
        "height": whole(1, 4096),
        "width": whole(1, 4096),
        "channels": choice("rgb", "bgr"),
        "layout": choice("nchw", "nhwc"),
        "scale": number(1e-6, 1e6),
        "mean": _THREE,
        "std": listed(number(1e-6, 1e6), 3, 3, "three positive numbers"),
    },
    "entry",
    required=("height", "width"),
)
_OUTPUT = table(
    {
        "field": word,
        "output": text(200),
        "channels": listed(whole(0, 100_000), 1, 1000, "a list of channel numbers"),
        "values": listed(optional(text(100)), 1, 1000, "a list of values of the field, null for what is none"),
        "activation": choice("none", "sigmoid", "softmax"),
        "threshold": number(0, 1),
    },
    "entry",
    required=("field", "output", "values"),
)
_FILE = table(
    {
        "name": word,
        "network": text(1000),
        "modalities": listed(word, 0, 20, "a list of modalities"),
        "input": _INPUT,
        "outputs": listed(_OUTPUT, 1, 200, "a list of at most 200 outputs"),
    },
    "entry",
    required=("name", "network", "input", "outputs"),
)
_SLACK = 0.02  # how far rounded probabilities may lie outside [0, 1], or sum to something else than 1


@dataclass(frozen=True)
class Output:
    """How a field is read from an output of the network.

    Attributes:
        field: Name of the field.
        output: Name of the output.
        values: Values of the channels, None for what the vocabulary has no word for; several channels may share one.
            With a single channel: the value it is the probability of, and the one of the rest.
        channels: Their places in the flattened output; empty: all of them.
        activation: What makes probabilities of the channels: ``"none"`` if they are such, ``"softmax"``, or
            ``"sigmoid"`` for a single channel.
        threshold: Probability below which the answer is unknown and takes no part in merging.
    """

    field: str
    output: str
    values: tuple[str | None, ...]
    channels: tuple[int, ...] = ()
    activation: str = "none"
    threshold: float = 0.0

    def read(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the probability of each value, with six digits; nothing if none reaches the threshold.

        Raises:
            ValueError: If the output has too few channels, or gives no probabilities.
        """
        given = np.asarray(outputs[self.output], dtype=np.float64).reshape(-1)
        if any(channel >= len(given) for channel in self.channels):
            raise ValueError(f"output {self.output!r} has {len(given)} channels; {self.field} reads {self.channels}")
        shares = given[list(self.channels)] if self.channels else given
        if len(shares) != len(self.values) and not (len(shares) == 1 and len(self.values) == 2):
            raise ValueError(
                f"{self.field} has {len(self.values)} values for {len(shares)} channels of {self.output!r}"
            )
        if self.activation == "softmax":
            shares = np.exp(shares - shares.max())
            shares /= shares.sum()
        elif self.activation == "sigmoid":
            shares = 1 / (1 + np.exp(-np.clip(shares, -500, 500)))
        single = len(shares) == 1 and len(self.values) == 2
        if single:
            shares = np.append(shares, 1 - shares)
        total = shares.sum()
        if not (np.isfinite(shares).all() and (-_SLACK <= shares).all() and abs(total - 1) <= _SLACK):
            raise ValueError(
                f"output {self.output!r} gives no probabilities for {self.field} ({show(shares.round(4).tolist())}): "
                'add "activation": "sigmoid" for a single channel, "softmax" for several'
            )
        found: dict[str, float] = {}
        for value, share in zip(self.values, np.clip(shares, 0, 1) / max(total, 1.0), strict=True):
            if value is not None:
                found[value] = found.get(value, 0.0) + float(share)
        # cut, not rounded: rounded ones may sum to more than 1
        found = {value: math.floor(min(1.0, share) * 1e6) / 1e6 for value, share in found.items()}
        return found if max(found.values(), default=0.0) >= self.threshold else {}


@dataclass(frozen=True)
class Classifier:
    """A network that gives probabilities of attributes, as its JSON file describes it.

    Attributes:
        model: Its name.
        network: File of the network: ONNX, or OpenVINO (``.xml`` beside its ``.bin``).
        outputs: What is read from it.
        height, width: Size of its input; images are stretched to it.
        channels: Their order, ``"rgb"`` or ``"bgr"``.
        layout: ``"nchw"`` or ``"nhwc"``.
        scale, mean, std: A pixel x of 0 to 255 becomes ``(scale * x - mean) / std``, channel by channel in their order.
        modalities: Those it is asked about; empty: all.
        digest: Of the settings and the network.
    """

    model: str
    network: Path
    outputs: tuple[Output, ...]
    height: int
    width: int
    channels: str = "rgb"
    layout: str = "nchw"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    modalities: tuple[str, ...] = ()
    digest: str = ""

    api: ClassVar[Api] = "classifier"
    host: ClassVar[str] = "this machine"
    price: ClassVar[tuple[float, float]] = (0.0, 0.0)
    key: ClassVar[None] = None

    def client(self) -> "ClassifierClient":
        """Return what runs it."""
        return ClassifierClient(self)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return 0: it runs here."""
        return 0.0

    def prepared(self, image: Image.Image) -> np.ndarray:
        """Return an RGB image as the network takes it, ``(1, 3, H, W)`` or ``(1, H, W, 3)`` in float32."""
        pixels = np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR), dtype=np.float32)
        pixels = pixels if self.channels == "rgb" else pixels[..., ::-1]  # (H, W, 3)
        mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
        pixels = (np.float32(self.scale) * pixels - mean) / std
        return np.ascontiguousarray((pixels if self.layout == "nhwc" else pixels.transpose(2, 0, 1))[None])


def read_classifier(path: str | Path, schema: Schema) -> Classifier:
    """Read the description of a classifier; the network's file is named relative to it.

    Raises:
        FileNotFoundError: If there is no such file, or the network is missing.
        ValueError: If it is something else, or its fields or values are not those of the schema; names the entry.
    """
    path = Path(path)
    given = read_json(path)
    try:
        found = _FILE("the description", given)
        outputs = tuple(Output(**one) for one in found["outputs"])
        for output in outputs:
            _check(output, schema)
        if len({output.field for output in outputs}) < len(outputs):
            raise ValueError("the description.outputs must name every field once")
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} describes no classifier: {error.args[0]}") from None
    network = (path.parent / found["network"]).resolve()
    parts = [network, network.with_suffix(".bin")] if network.suffix == ".xml" else [network]
    digest = hashlib.sha256()
    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(f"{path}: there is no network {part}")
        digest.update(hashlib.sha256(part.read_bytes()).digest())
    digest.update(json.dumps([[asdict(output) for output in outputs], found["input"]], sort_keys=True).encode())
    settings = {**found["input"], "modalities": found.get("modalities", ())}
    return Classifier(found["name"], network, outputs, **settings, digest=digest.hexdigest()[:16])


class ClassifierClient:
    """Runs a classifier. Use it as an asynchronous context manager, which loads the network.

    Raises:
        ImportError: If the runtime of its format is not installed.
        ValueError: If the network cannot be loaded, or has not this input and these outputs.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.server = classifier
        self._run: Callable[[np.ndarray], Mapping[str, np.ndarray]]

    async def __aenter__(self) -> "ClassifierClient":
        self._run = await asyncio.to_thread(_load, self.server)
        return self

    async def __aexit__(self, *error: object) -> None:
        del self._run

    async def decide(self, statement: str, questions: Sequence[Any], image: Image.Image) -> Reply:
        """Run the network on an RGB image; the reply's text is that of `read_decisions`.

        Raises:
            ValueError: If the outputs are no probabilities of these fields.
        """
        found = await asyncio.to_thread(self.classify, image)
        return Reply(json.dumps(found), False, "stop", None, self.server.model, 0, 0, request="")

    def classify(self, image: Image.Image) -> dict[str, dict[str, float]]:
        """Return the probabilities by field; a field below its threshold is absent.

        Raises:
            ValueError: As `decide`.
        """
        outputs = self._run(self.server.prepared(image))
        try:
            return {o.field: shares for o in self.server.outputs if (shares := o.read(outputs))}
        except ValueError as error:
            raise ValueError(f"classifier {self.server.model!r}: {error}") from None


def _check(output: Output, schema: Schema) -> None:
    allowed, count = schema[output.field].values, len(output.values)
    for value in output.values:
        if value is not None and allowed and value not in allowed:
            known = ", ".join(allowed)
            raise ValueError(f"{output.field} has no value {value!r}; it has {known}, or null for none of them")
    if output.activation == "sigmoid" and (len(output.channels), count) != (1, 2):
        raise ValueError(f'{output.field}: "sigmoid" is for one channel and two values, its own and that of the rest')
    if output.channels and count != max(2, len(output.channels)):
        raise ValueError(f"{output.field} has {count} values for {len(output.channels)} channels")


def _load(classifier: Classifier) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """Load the network and check what it takes and gives."""
    load = _load_openvino if classifier.network.suffix == ".xml" else _load_onnx
    try:
        run, inputs, outputs = load(classifier.network)
    except ImportError:
        raise
    except Exception as error:  # each runtime raises its own
        raise ValueError(f"{classifier.network} cannot be loaded: {str(error)[:300]}") from None
    name = f"classifier {classifier.model!r}"
    size = (classifier.height, classifier.width)
    expected = (1, 3, *size) if classifier.layout == "nchw" else (1, *size, 3)
    if len(inputs) != 1 or len(inputs[0]) != 4:
        raise ValueError(f"{name}: the network must take one image; it takes {show(inputs)}")
    if any(isinstance(side, int) and side > 0 and side != own for side, own in zip(inputs[0], expected, strict=True)):
        raise ValueError(f"{name}: the network takes {show(inputs[0])}, the description says {expected}")
    if missing := sorted({o.output for o in classifier.outputs} - set(outputs)):
        raise ValueError(f"{name}: the network has no output {missing[0]!r}; it has {', '.join(outputs)}")
    return run


Loaded = tuple[Callable[[np.ndarray], Mapping[str, np.ndarray]], list[Any], list[str]]


def _runtime(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this classifier's network needs {name}: pip install {package}") from error


def _load_onnx(path: Path) -> Loaded:
    onnxruntime = _runtime("onnxruntime", "'nextreid[export]'")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # images run beside each other
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = [list(one.shape) for one in session.get_inputs()]
    entry = session.get_inputs()[0].name
    return lambda pixels: dict(zip(names, session.run(names, {entry: pixels}), strict=True)), inputs, names


def _load_openvino(path: Path) -> Loaded:
    openvino = _runtime("openvino", "openvino")
    # by default it computes with fewer bits where the processor can, and answers differ between machines
    network = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.any_name for output in network.outputs]
    inputs = [[side.get_length() if side.is_static else 0 for side in one.partial_shape] for one in network.inputs]
    local = threading.local()  # a request serves one thread at a time

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        if not hasattr(local, "request"):
            local.request = network.create_infer_request()
        results = local.request.infer([pixels])
        return {name: results[place] for place, name in enumerate(names)}

    return run, inputs, names
