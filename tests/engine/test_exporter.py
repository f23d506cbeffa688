"""Exported files: they compute what the model does for any batch, alone, or they are not there."""

import importlib
import importlib.util
import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import nextreid
from nextreid.engine.exporter import FORMATS, export

exporting = importlib.import_module("nextreid.engine.exporter")  # the package has a function of that name
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs onnx, onnxscript and onnxruntime: nextreid[export]")
BOTH = [pytest.param("onnx", marks=needs_onnx), "torch_export"]
SLOW_ONNX = [pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow]), "torch_export"]

SMALL = {
    "img_size": (16, 16),
    "image_tower_args": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "embed_dim": 32,
}
NEXT = {
    "head": {"num_semantic_experts": 2, "num_structure_experts": 2},
    "text_tower": {"width": 32, "heads": 2, "layers": 1},
}
CASES = {
    "next": ("next_tiny", None, {**NEXT, "num_classes": 5}),
    "next without text": (
        "next_tiny",
        False,
        {**NEXT, "head": {"num_semantic_experts": 1}, "modalities": ("rgb", "tir")},
    ),
    "baseline": ("baseline_tiny", None, {"modalities": ("rgb",)}),
    "towers and cameras": ("baseline_tiny", None, {"num_cameras": 2, "num_classes": 3, "share_image_tower": False}),
}


def small(name="baseline_tiny", **kwargs):
    torch.manual_seed(0)
    return nextreid.create_model(name, **{**SMALL, **kwargs})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a case once; give the model, the report and what runs the file."""
    done = {}

    def get(case, format):
        if (case, format) not in done:
            name, text, kwargs = CASES[case]
            model = small(name, **kwargs)
            modes = [module.training for module in model.modules()]
            folder = tmp_path_factory.mktemp("exported")
            report = export(model, folder / "file", format, text=text)
            assert [module.training for module in model.modules()] == modes
            assert [path.name for path in folder.iterdir()] == ["file"]
            done[case, format] = model.eval(), report, FORMATS[format][1](report.path)
        return done[case, format]

    return get


def inputs(model, count, text=True):
    generator = torch.Generator().manual_seed(count)
    present = torch.ones(count, len(model.modalities), dtype=torch.bool)
    present[0, 1:] = False
    images = torch.randn(count, len(model.modalities), 3, *model.img_size, generator=generator)
    features = F.normalize(torch.randn(count, len(model.modalities), model.embed_dim, generator=generator), dim=-1)
    batch = {"images": images.masked_fill(~present[:, :, None, None, None], torch.nan), "present": present}
    return batch | ({"text": features} if text and model.uses_text else {})


def embed(model, **batch):
    return model.pool(model.forward_features(**batch))


def expected(model, batch):
    with torch.no_grad():
        return F.normalize(embed(model, **batch), dim=1)


@pytest.mark.parametrize(
    ("case", "format"),
    [
        pytest.param("next", "onnx", marks=[needs_onnx, pytest.mark.slow]),
        pytest.param("towers and cameras", "onnx", marks=needs_onnx),
        *((case, "torch_export") for case in CASES),
    ],
)
def test_a_file_gives_the_models_embeddings_at_any_batch(exported, case, format):
    model, report, run = exported(case, format)
    assert report.cosine > 0.99999 and report.rank_agreement == 1.0 and report.synthetic == 24 and report.real == 0
    for count in (1, 2, 7, 40):
        batch = inputs(model, count, CASES[case][1] is None)
        assert report.inputs == tuple(batch)
        found = run(batch)
        assert found.shape == (count, report.dim)
        torch.testing.assert_close(found, expected(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", SLOW_ONNX)
def test_captions_and_presence_matter_to_the_file(exported, format):
    model, _, run = exported("next", format)
    batch = inputs(model, 3)
    silent, partly = batch | {"text": torch.zeros_like(batch["text"])}, batch | {"present": batch["present"].clone()}
    partly["present"][1, 2] = False
    for one in (silent, partly):
        torch.testing.assert_close(run(one), expected(model, one), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(silent), run(batch), atol=1e-4)
    assert not torch.allclose(run(partly)[1], run(batch)[1], atol=1e-4)


def test_the_raw_embedding_is_not_of_length_one(tmp_path):
    model = small().eval()
    export(model, tmp_path / "file", "torch_export", normalize=False)
    batch = inputs(model, 3)
    with torch.no_grad():
        torch.testing.assert_close(FORMATS["torch_export"][1](tmp_path / "file")(batch), embed(model, **batch))
        assert (embed(model, **batch).norm(dim=1) - 1).abs().min() > 0.1


@pytest.mark.slow
def test_a_torch_file_runs_where_this_package_is_not(exported, tmp_path):
    model, report, _ = exported("next", "torch_export")
    batch = inputs(model, 3)
    torch.save(batch | {"expected": expected(model, batch)}, tmp_path / "batch.pt")
    code = (
        "import sys, torch\n"
        "sys.modules |= dict.fromkeys(('nextreid', 'timm', 'open_clip', 'einops', 'triton'))\n"
        "extra = {'nextreid.json': ''}\n"
        "run = torch.export.load(open(sys.argv[1], 'rb'), extra_files=extra).module()\n"
        "batch = torch.load('batch.pt', weights_only=True)\n"
        "expected = batch.pop('expected')\n"
        "torch.testing.assert_close(run(**batch), expected, rtol=1e-4, atol=1e-5)\n"
        "print(extra['nextreid.json'])\n"
    )
    words = [sys.executable, "-c", code, str(report.path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["architecture"] == "next_tiny" and said["modalities"] == ["rgb", "nir", "tir"]
    assert said["img_size"] == [16, 16] and said["mean"] == [0.5, 0.5, 0.5] and said["text"] and said["normalized"]


@pytest.mark.slow
@needs_onnx
def test_an_onnx_file_is_valid_and_describes_itself(exported):
    import onnx

    file = onnx.load(exported("next", "onnx")[1].path)
    onnx.checker.check_model(file)
    assert [value.name for value in file.graph.input] == ["images", "present", "text"]
    assert [value.name for value in file.graph.output] == ["embedding"]
    for value in (*file.graph.input, *file.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param  # a name, not a number
    said = json.loads({entry.key: entry.value for entry in file.metadata_props}["nextreid"])
    assert said["img_size"] == [16, 16] and said["versions"]["nextreid"] == nextreid.__version__


def test_the_file_has_neither_text_tower_nor_classifier(exported):
    model, report, _ = exported("next", "torch_export")
    names = torch.export.load(report.path.open("rb")).state_dict.keys()
    assert names and not [name for name in names if "text_tower" in name or "neck" in name]
    assert model.text_tower is not None and model.necks[0](torch.zeros(2, model.num_features)).shape == (2, 5)


class Plain(torch.nn.Module):
    """In the model's place: the first pixels, all nearly in one direction."""

    def __init__(self, *args):
        super().__init__()

    def forward(self, images, present, text=None):
        return F.normalize(1 + 0.02 * images.flatten(1)[:, :64], dim=1)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(exporting, "_Embedding", Plain)


def spoiled(change):
    """A format whose reader returns what `change` makes of the right embeddings."""
    write, right = FORMATS["torch_export"]

    def wrong(path):
        run = right(path)
        return lambda batch: change(run(batch))

    return write, wrong


def only_two(embedding):
    if len(embedding) == 1:
        raise RuntimeError("expected 2")
    return embedding


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: -e, "embeddings are not the model's"),
        (lambda e: torch.full_like(e, torch.nan), "embeddings are not the model's"),
        (lambda e: e[:, :-1], r"gives \(24, 63\), the model \(24, 64\)"),
        (only_two, r"does not run on a batch of 1 \(expected 2\)"),
    ],
)
def test_a_file_that_gives_something_else_does_not_stay(tmp_path, monkeypatch, plain, change, named):
    monkeypatch.setitem(FORMATS, "torch_export", spoiled(change))
    with pytest.raises(ValueError, match=f"was not written: .*{named}"):
        export(small(), tmp_path / "model.pt2", "torch_export")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.pt2").write_text("an older file")
    with pytest.raises(ValueError, match="was not written"):
        export(small(), tmp_path / "model.pt2", "torch_export", overwrite=True)
    assert (tmp_path / "model.pt2").read_text() == "an older file"


@needs_onnx
def test_an_altered_onnx_file_does_not_stay(tmp_path, monkeypatch):
    import onnx

    write, read = FORMATS["onnx"]

    def altered(program, path, metadata):
        write(program, path, metadata)
        file = onnx.load(path)
        weight = max(file.graph.initializer, key=lambda weight: math.prod(weight.dims))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[::2] *= -1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(file, path)

    monkeypatch.setitem(FORMATS, "onnx", (altered, read))
    with pytest.raises(ValueError, match=r"was not written: its embeddings are not the model's .*; try the other"):
        export(small(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_order_is_wrong_does_not_stay(tmp_path, monkeypatch, plain):
    """Embeddings that nearly all point one way have high cosines in any order."""
    assert export(small(), tmp_path / "right.pt2", "torch_export").rank_agreement == 1.0
    noise = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(FORMATS, "torch_export", spoiled(lambda e: F.normalize(e + 3e-3 * noise[: len(e)], dim=1)))
    with pytest.raises(ValueError, match=r"lowest cosine 0\.999\d+, rank agreement 0\.[0-8]"):
        export(small(), tmp_path / "again.pt2", "torch_export")


@pytest.mark.slow
@needs_onnx
def test_a_file_in_8_bits_is_checked_on_identities(tmp_path):
    model = nextreid.create_model("baseline_tiny.synthetic_persons", pretrained=True)
    samples = nextreid.load_dataset("synthetic-persons", profile="tiny", num_train=0, num_test=12).query
    plain = export(model, tmp_path / "plain.onnx")
    report = export(model, tmp_path / "small.onnx", int8=True, check=samples)
    assert report.int8.samples == report.real == len(samples) and report.int8.rank_agreement > 0.998
    assert report.path.stat().st_size < 0.5 * plain.path.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.onnx", "small.onnx"]
    with pytest.raises(ValueError, match="int8 goes with the format onnx"):
        export(model, tmp_path / "model.pt2", "torch_export", int8=True, check=samples)
    with pytest.raises(ValueError, match="int8 needs a check set"):
        export(model, tmp_path / "model.onnx", int8=True)


def test_real_samples_are_compared_too(tmp_path, dataset, monkeypatch):
    model = small(img_size=(64, 32))
    report = export(model, tmp_path / "model.pt2", "torch_export", check=dataset.train)
    assert report.real == len(dataset.train) and report.cosine > 0.99999 and report.rank_agreement == 1.0
    monkeypatch.setitem(FORMATS, "torch_export", spoiled(lambda e: e if len(e) in (1, 2, 7, 14) else -e))
    with pytest.raises(ValueError, match="embeddings are not the model's"):
        export(model, tmp_path / "again.pt2", "torch_export", check=dataset.train)
    assert export(model, tmp_path / "again.pt2", "torch_export", check=dataset.train[:2]).real == 2


def test_captions_of_real_samples_are_encoded_as_the_model_does(dataset):
    model = small("next_tiny", **NEXT, img_size=(64, 32))
    (batch,) = exporting._batches(model, dataset.train[:3], True)
    captions = [sample.captions for sample in dataset.train[:3]]
    torch.testing.assert_close(batch["text"], model.encode_text(captions))
    assert [*batch] == ["images", "present", "text"] and batch["present"].all()
    mute = small(
        "next_tiny",
        **{**NEXT, "text_tower": None, "head": {**NEXT["head"], "text_modulation": True}},
        img_size=(64, 32),
    )
    (batch,) = exporting._batches(mute, dataset.train[:3], True)
    assert batch["text"].shape == (3, 3, 32) and not batch["text"].any()


def test_what_is_asked_wrongly_is_named(tmp_path, monkeypatch):
    model = small()
    with pytest.raises(ValueError, match=r"unknown format 'tflite'; allowed: onnx, torch_export"):
        export(model, tmp_path / "x", "tflite")
    with pytest.raises(ValueError, match=r"baseline_tiny reads no captions.*without text"):
        export(model, tmp_path / "x", "torch_export", text=True)
    (tmp_path / "x").write_text("")
    with pytest.raises(FileExistsError, match="overwrite"):
        export(model, tmp_path / "x", "torch_export")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript: pip install 'nextreid\[export\]', or use torch_export"):
        export(model, tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_model_that_cannot_be_traced_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Plain, "forward", lambda self, images, present: images[: int(images.sum()) % 2, 0, 0, 0])
    monkeypatch.setattr(exporting, "_Embedding", Plain)
    with pytest.raises(ValueError, match="baseline_tiny cannot be exported as torch_export: "):
        export(small(), tmp_path / "x", "torch_export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@needs_onnx
def test_a_large_onnx_file_and_its_weights_are_two_files_of_one_name(tmp_path, monkeypatch):
    program = importlib.import_module("torch.onnx._internal.exporter._onnx_program")
    monkeypatch.setattr(program, "_LARGE_MODEL_THRESHOLD", 1000)
    path = tmp_path / "model.onnx"
    report = export(small(), path)
    assert report.weights == tmp_path / "model.onnx.data" and report.weights.is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    with pytest.raises(FileExistsError):
        export(small(), path)
    monkeypatch.undo()
    assert export(small(), path, overwrite=True).weights is None
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    report.weights.write_text("of somebody")
    path.unlink()
    with pytest.raises(FileExistsError, match=r"model\.onnx\.data exists"):
        export(small(), path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the file size")
@pytest.mark.parametrize("format", BOTH)
def test_a_full_disk_ends_in_an_error_and_not_the_process(tmp_path, format):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/file: "):
            export(small(), tmp_path / "file", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
