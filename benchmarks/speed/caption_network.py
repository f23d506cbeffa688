"""A network small enough to be written by hand: the mean of each input channel, and what two heads make of it."""

import json
from pathlib import Path

SIZE = (8, 4)
WEIGHTS = ((1.0, 0.0, -1.0), (0.5, 0.5, 0.0))  # of the logits, by input channel

SETTINGS = {
    "name": "tiny",
    "network": "tiny.onnx",
    "input": {"height": SIZE[0], "width": SIZE[1], "channels": "bgr", "scale": 1 / 255},
    "outputs": [
        {"field": "gender", "output": "chances", "channels": [0], "values": ["male", "female"]},
        {"field": "upper_clothing", "output": "chances", "channels": [1], "values": ["jacket", None]},
        {"field": "upper_clothing_color", "output": "colours", "values": ["blue", "green", "red"]},
        {"field": "backpack", "output": "logits", "channels": [1], "values": ["yes", "no"], "activation": "sigmoid"},
    ],
}


def write_classifier(folder: Path, **changes: object) -> Path:
    """Write the network and its description; return the description's file."""
    from onnx import TensorProto, helper, save

    pooled = helper.make_node("GlobalAveragePool", ["image"], ["pooled"])
    logits = helper.make_node("Conv", ["pooled", "weights"], ["logits"])
    chances = helper.make_node("Sigmoid", ["logits"], ["chances"])
    colours = helper.make_node("Softmax", ["pooled"], ["colours"], axis=1)
    weights = helper.make_tensor("weights", TensorProto.FLOAT, (2, 3, 1, 1), [w for row in WEIGHTS for w in row])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, *SIZE))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, count, 1, 1))
        for name, count in (("logits", 2), ("chances", 2), ("colours", 3))
    ]
    graph = helper.make_graph([pooled, logits, chances, colours], "tiny", [image], outputs, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, str(folder / "tiny.onnx"))
    path = folder / "tiny.json"
    path.write_text(json.dumps({**SETTINGS, **changes}))
    return path
