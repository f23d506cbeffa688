"""Images of every kind to vectors; the references are `extract`, the model itself, and crops written as files."""

import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import nextreid
from nextreid.data import ImageFile, seeded_rng, split_sentences
from nextreid.engine import EmbedOptions, FeatureExtractor, extract, feature_extractor

COLOURS = ("red", "green", "blue", "white", "yellow", "grey")
SIZES = {"rgb": (40, 30), "nir": (64, 32), "tir": (23, 71)}  # height and width; those of nir are the model's own
LONG = " ".join(f"There is a {colour} mark near her left shoulder and one more of it on the bag." for colour in COLOURS)
SAID = {"rgb": f"A woman in a red coat. {LONG}", "tir": ["A person.", "A bag."]}  # one that fills several windows


def pixels(*what, size=(40, 30, 3)):
    return seeded_rng("feature extractor", *what).integers(0, 256, size, np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder rgb/nir/tir of four moments, as `extract` reads it; the second has no thermal image."""
    root = tmp_path_factory.mktemp("images")
    for modality, size in SIZES.items():
        (root / modality).mkdir()
        for name in "abcd":
            if (modality, name) != ("tir", "b"):
                Image.fromarray(pixels(modality, name, size=(*size, 3))).save(root / modality / f"{name}.png")
    return root


def moment(root, name):
    paths = {modality: root / modality / f"{name}.png" for modality in SIZES}
    return {modality: path for modality, path in paths.items() if path.exists()}


@pytest.fixture
def rgb_only(build):
    return FeatureExtractor(build("baseline_tiny", modalities=("rgb",)), batch_size=2)


def test_vectors_are_those_of_extract_to_the_bit(build, images, tmp_path):
    model = build()
    for normalize in (True, False):
        out = tmp_path / str(normalize)
        expected = load_file(extract(model, images, out, options=EmbedOptions(3), normalize=normalize).embeddings)[
            "embedding"
        ]
        vectors = FeatureExtractor(model, batch_size=3, normalize=normalize)([moment(images, n) for n in "abcd"])
        assert vectors.dtype == torch.float32 and not vectors.requires_grad
        assert torch.equal(vectors, expected)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(4)) == normalize


def test_captions_are_read_as_extract_reads_them(build, images, tmp_path):
    model = build()
    (images / "list.csv").write_text(
        "key,rgb,nir,tir,caption_rgb,caption_tir\n"
        f"a,rgb/a.png,nir/a.png,tir/a.png,{SAID['rgb']},{' '.join(SAID['tir'])}\nc,rgb/c.png,nir/c.png,,,\n"
    )
    expected = load_file(extract(model, images / "list.csv", tmp_path).embeddings)["embedding"]
    extractor = FeatureExtractor(model)
    one, two = moment(images, "a"), {**moment(images, "c"), "tir": None}
    assert torch.equal(extractor([{**one, "captions": SAID}, two]), expected)
    said = extractor(**one, captions=SAID)
    assert torch.equal(extractor(one, captions=SAID), said)
    sentences = {
        "rgb": ["A woman in a red coat.", " ", *split_sentences(LONG)],
        "nir": None,
        "tir": "A person. A bag.",
    }
    assert torch.equal(extractor({**one, "captions": sentences}), said)
    assert torch.allclose(said, expected[0], atol=1e-5) and not torch.allclose(said, extractor(**one), atol=1e-3)
    for blank in (" ", [" "], [], None):
        assert torch.equal(extractor(one, captions={"rgb": blank}), extractor(one))


def test_one_sample_can_be_given_in_four_ways(build, images):
    extractor = FeatureExtractor(build("baseline_tiny"))
    paths = moment(images, "a")
    vector = extractor(**paths)
    assert vector.shape == (extractor.model.num_features,)
    assert torch.equal(extractor(paths), vector)
    assert torch.equal(extractor(*paths.values()), vector)
    assert torch.equal(extractor([paths])[0], vector) and torch.equal(extractor([tuple(paths.values())])[0], vector)
    assert not torch.allclose(extractor(paths["nir"], paths["rgb"], paths["tir"]), vector, atol=1e-3)


def test_a_missing_modality_is_one_that_is_left_out(build, images):
    model = build()
    extractor = FeatureExtractor(model, normalize=False)
    paths = moment(images, "a")
    vector = extractor(nir=paths["nir"])
    image = np.asarray(Image.open(paths["nir"])).transpose(2, 0, 1)
    images = torch.full((1, 3, 3, 64, 32), torch.nan)
    images[0, 1] = (torch.tensor(image) / 255 - 0.5) / 0.5
    with torch.no_grad():
        expected = model(images, present=torch.tensor([[False, True, False]]))[0]
    torch.testing.assert_close(vector, expected)
    assert torch.equal(extractor(rgb=None, nir=paths["nir"], tir=None), vector)
    assert torch.equal(extractor(None, paths["nir"], None), vector)


def test_the_transform_is_the_models_own(build, images):
    settings = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear"}
    model = build("baseline_tiny", modalities=("rgb",), pretrained_cfg_overlay=settings).eval()
    image = Image.open(images / "rgb" / "a.png")
    array = np.asarray(image.resize((32, 64), Image.Resampling.BILINEAR)).astype(np.float64) / 255
    array = (array - settings["mean"]) / settings["std"]
    with torch.no_grad():
        expected = model(torch.tensor(array).float().permute(2, 0, 1)[None, None])
    torch.testing.assert_close(FeatureExtractor(model)(image), F.normalize(expected, dim=1)[0])


def test_every_kind_of_image_is_the_same_image(rgb_only, tmp_path):
    array = pixels("kinds")
    Image.fromarray(array).save(path := tmp_path / "a.png")
    vector = rgb_only(path)
    channels_first = np.ascontiguousarray(array.transpose(2, 0, 1))
    kinds = [
        str(path),
        ImageFile(path),
        Image.open(path),
        Image.fromarray(np.dstack([array, pixels("alpha", size=(40, 30))])),  # its alpha channel is dropped
        array,
        array[..., ::-1].copy()[..., ::-1],  # as a frame of OpenCV is turned
        channels_first,
        torch.tensor(channels_first),
        torch.tensor(array),
        torch.tensor(channels_first).permute(1, 2, 0),
    ]
    for kind in kinds:
        assert torch.equal(rgb_only(kind), vector)


def test_grey_images_are_repeated(rgb_only, tmp_path):
    grey = pixels("grey", size=(40, 30))
    vector = rgb_only(np.dstack([grey] * 3))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for kind in (grey, grey[None], torch.tensor(grey[..., None]), Image.fromarray(grey), tmp_path / "grey.png"):
        assert torch.equal(rgb_only(kind), vector)


def test_pillow_images_are_read_as_their_files_are(rgb_only, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    image = Image.fromarray(pixels("exif"))
    image.save(tmp_path / "turned.png", exif=turned)
    image.quantize(7).save(tmp_path / "palette.png")
    image.convert("LA").save(tmp_path / "alpha.png")
    image.convert("1").save(tmp_path / "bits.png")
    for path in tmp_path.iterdir():
        with Image.open(path) as given:
            mode, size = given.mode, given.size
            assert torch.equal(rgb_only(given), rgb_only(path))
            assert (given.mode, given.size, given.getexif().get(0x0112)) == (
                mode,
                size,
                6 if "turned" in path.name else None,
            )
    assert not torch.allclose(rgb_only(tmp_path / "turned.png"), rgb_only(image), atol=1e-3)


def test_lists_are_embedded_in_batches_and_in_their_order(rgb_only):
    seen = []
    rgb_only.model.image_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    arrays = [pixels(i, size=(20 + i, 10, 3)) for i in range(5)]
    vectors = rgb_only(arrays)
    assert seen == [2, 2, 1]
    torch.testing.assert_close(vectors, torch.stack([rgb_only(array) for array in arrays]))
    assert rgb_only([]).shape == (0, rgb_only.model.num_features)
    assert torch.equal(rgb_only(tuple({"rgb": array} for array in arrays)), vectors)


def test_deep_files_are_read_through_a_window(build, tmp_path):
    raw = pixels("raw", size=(40, 30)).astype(np.uint16) * 8 + 7000
    Image.fromarray(raw).save(path := tmp_path / "deep.png")
    model = build("baseline_tiny", modalities=("tir",))
    expected = FeatureExtractor(model)(((raw - 7000) // 8).astype(np.uint8))
    windowed = FeatureExtractor(model, window={"tir": (7000, 7000 + 8 * 255)})
    assert torch.equal(windowed(path), expected) and torch.equal(windowed(tir=str(path)), expected)
    assert torch.equal(FeatureExtractor(model)(ImageFile(path, window=(7000, 7000 + 8 * 255))), expected)
    for kind in (path, Image.open(path), raw):
        with pytest.raises(ValueError, match=r"the tir image.*(more than 8 bits|uint16).*window=\{"):
            FeatureExtractor(model)(kind)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (pixels("x") / np.float32(255), r"the rgb image holds float32, expected uint8.*0 \.\.\. 1.*\* 255"),
        (torch.zeros(3, 40, 30, dtype=torch.bfloat16), "holds bfloat16.*could be 0"),
        (np.zeros((40, 30, 3)), "holds float64"),
        (torch.zeros(40, 30, dtype=torch.bool), "holds bool.*True is white"),
        (np.zeros((40, 30), np.int16), r"holds int16.*window=\{"),
        (torch.zeros(3, 40, 30, dtype=torch.int64), "holds int64.*as uint8"),
        (np.zeros((3, 40, 3), np.uint8), r"shape \(3, 40, 3\).*first axis or the last"),
        (np.zeros((1, 40, 3), np.uint8), "first axis or the last"),
        (np.zeros((40, 30, 4), np.uint8), "drop a fourth channel"),
        (np.zeros((2, 3, 40, 30), np.uint8), "list of samples"),
        (np.zeros(40, np.uint8), r"expected \(H, W, 3\)"),
        (np.zeros((0, 30, 3), np.uint8), r"is empty: its shape is \(0, 30, 3\)"),
        (b"\x89PNG", r"the rgb image is a bytes.*BytesIO"),
        (17, "is a int"),
        ("nowhere.png", r"cannot read nowhere\.png, the rgb image: .*No such file"),
        (Image.new("F", (30, 40)), "more than 8 bits"),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(rgb_only, image, message):
    with pytest.raises(ValueError, match=message):
        rgb_only(image)
    with pytest.raises(ValueError, match=r"rgb image of sample '?2'?"):
        rgb_only([pixels("good")] * 2 + [image])


def test_damaged_images_are_named(rgb_only, images, tmp_path):
    data = (images / "rgb" / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*cut\.png, the rgb image of sample '1'"):
        rgb_only([pixels("good"), tmp_path / "cut.png"])
    with pytest.raises(ValueError, match="cannot read the rgb image: "):
        rgb_only(Image.open(tmp_path / "cut.png"))


def test_samples_that_do_not_fit_the_model_are_refused(build):
    extractor = FeatureExtractor(build("baseline_tiny"))
    good = pixels("good")
    for call, message in (
        (lambda: extractor(), "no image: give one or more of rgb, nir, tir"),
        (lambda: extractor({}), "no image"),
        (lambda: extractor(None, None, None), "no image"),
        (lambda: extractor([{"rgb": good}, {"rgb": None}]), "no image of sample 1"),
        (lambda: extractor(thermal=good), r"unknown modality 'thermal'.*'tir'"),
        (lambda: extractor([{"rgb": good}, {1: good}]), "unknown modality 1 of sample 1"),
        (lambda: extractor(good), r"one for each of \('rgb', 'nir', 'tir'\), got 1: name.*rgb=\.\.\."),
        (lambda: extractor(good, good), "got 2"),
        (lambda: extractor([good, good, good]), "of sample 0 .*got 1.*list is one of samples"),
        (lambda: extractor([(good, good)]), "of sample 0 .*got 2"),
        (lambda: extractor(good, nir=good), "name all images"),
        (lambda: extractor({"rgb": good}, nir=good), "name all images"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_captions_that_would_not_be_read_are_refused(build):
    extractor, good = FeatureExtractor(build()), pixels("good")
    for captions, message in (
        ("A red coat.", "captions must be a table by modality.*got str"),
        ({"thermal": "A coat."}, r"unknown modalities \['thermal'\]"),
        ({"nir": "A coat."}, "nir caption without the nir image"),
        ({"rgb": 3}, "the rgb caption must be a string or a list"),
        ({"rgb": ["A coat.", None]}, "the rgb caption must be"),
    ):
        with pytest.raises(ValueError, match=message):
            extractor(rgb=good, captions=captions)
    sample = {"rgb": good, "captions": {"rgb": "A coat."}}
    with pytest.raises(ValueError, match="belong to its samples"):
        extractor([sample], captions={"rgb": "A coat."})
    with pytest.raises(ValueError, match="given twice"):
        extractor(sample, captions={"rgb": "A coat."})
    with pytest.raises(ValueError, match="of sample 0"):
        extractor([{"rgb": good, "captions": {"tir": "A coat."}}])
    with pytest.raises(ValueError, match="baseline_tiny reads no captions"):
        FeatureExtractor(build("baseline_tiny"))(sample)


def test_boxes_of_a_frame_are_its_crops(build, tmp_path):
    extractor = FeatureExtractor(build("baseline_tiny"), batch_size=2)
    frames = {"rgb": pixels("frame", size=(90, 120, 3)), "tir": pixels("frame", "tir", size=(90, 120))}
    boxes = [
        (10, 20, 40, 80),
        (-5, -7.5, 30, 40),
        (100.6, 50.2, 130, 99),
        (0, 0, 120, 90),
        (7, 3, 10, 60),
        (7.4, 3.9, 10.1, 59.2),
    ]
    cuts = [(10, 20, 40, 80), (0, 0, 30, 40), (100, 50, 120, 90), (0, 0, 120, 90), (7, 3, 10, 60), (7, 3, 11, 60)]
    crops = []
    for number, (left, upper, right, lower) in enumerate(cuts):
        crops.append({m: tmp_path / f"{m}{number}.png" for m in frames})
        for modality, frame in frames.items():
            Image.fromarray(frame[upper:lower, left:right]).save(crops[-1][modality])
    expected = extractor(crops)
    assert torch.equal(extractor.encode(frames, boxes), expected)
    assert torch.equal(extractor.encode(frames, np.array(boxes, np.float32)), expected)
    assert torch.equal(extractor.encode(frames, torch.tensor(boxes, dtype=torch.bfloat16))[:2], expected[:2])
    Image.fromarray(frames["rgb"]).save(tmp_path / "frame.png")
    mixed = {"rgb": tmp_path / "frame.png", "nir": None, "tir": Image.fromarray(frames["tir"])}
    assert torch.equal(extractor.encode(mixed, boxes), expected)


def test_a_model_of_one_modality_takes_a_frame_alone(rgb_only):
    frame = pixels("frame", size=(60, 50, 3))
    vectors = rgb_only.encode(frame, [(0, 0, 50, 60), (10, 10, 20, 40)])
    torch.testing.assert_close(vectors[0], rgb_only(frame))
    torch.testing.assert_close(vectors[1], rgb_only(frame[10:40, 10:20]))


def test_detections_of_other_libraries_are_their_boxes(rgb_only):
    frame, xyxy = pixels("frame"), np.array([[1, 2, 20, 30], [5.5, 0, 90, 40]], np.float32)
    expected = rgb_only.encode(frame, xyxy)
    of_ultralytics = SimpleNamespace(xyxy=torch.tensor(xyxy), conf=torch.ones(2))
    for found in (SimpleNamespace(xyxy=xyxy), of_ultralytics, SimpleNamespace(boxes=of_ultralytics, orig_img=frame)):
        assert torch.equal(rgb_only.encode(frame, found), expected)
    assert rgb_only.encode(frame, SimpleNamespace(xyxy=np.empty((0, 4)))).shape == (0, rgb_only.model.num_features)


def test_detections_of_supervision(rgb_only):
    supervision = pytest.importorskip("supervision")
    frame, xyxy = pixels("frame"), np.array([[1, 2, 20, 30], [5, 0, 25, 39]], np.float32)
    found = supervision.Detections(xyxy=xyxy, confidence=np.array([0.4, 0.9]))
    assert torch.equal(rgb_only.encode(frame, found), rgb_only.encode(frame, xyxy))
    assert torch.equal(rgb_only.encode(frame, found[found.confidence > 0.5]), rgb_only.encode(frame, xyxy[1:]))
    assert len(rgb_only.encode(frame, supervision.Detections.empty())) == 0


@pytest.mark.slow
def test_an_extractor_pickles_to_a_worker(rgb_only):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(rgb_only.encode, pixels("frame"), [(1, 2, 20, 30)]).result()
    torch.testing.assert_close(found, rgb_only.encode(pixels("frame"), [(1, 2, 20, 30)]))


@pytest.mark.parametrize("boxes", [[], np.empty((0, 4)), torch.empty(0, 6)], ids=["list", "array", "tensor"])
def test_a_frame_without_objects_gives_no_vector(rgb_only, boxes):
    vectors = rgb_only.encode(pixels("frame"), boxes)
    assert vectors.shape == (0, rgb_only.model.num_features) and vectors.dtype == torch.float32


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([(0, 0, 9, 9), (5, 5, 5, 9)], r"1 of 2 boxes cover no part of the 30 x 40 frame, first box 1 .*\[5\.0, 5\.0"),
        ([(9, 0, 5, 9)], "first box 0"),
        ([(0, 0, 9, 9), (30, 0, 50, 9), (0, -9, 9, 0)], "2 of 3 boxes.*first box 1"),
        ([(0, 0, float("nan"), 9)], "first box 0"),
        ((0, 0, 9, 9), r"boxes must be \(n, 4\).*got shape \(4,\)"),
        (np.zeros((2, 6)), r"got shape \(2, 6\)"),
        ([(0, 0, 9), (0, 0, 9, 9)], r"boxes must be \(n, 4\)"),
        ("boxes", r"boxes must be \(n, 4\)"),
    ],
)
def test_bad_boxes_are_refused_by_number(rgb_only, boxes, message):
    with pytest.raises(ValueError, match=message):
        rgb_only.encode(pixels("frame"), boxes)


def test_bad_frames_are_refused(build):
    extractor, good = FeatureExtractor(build()), pixels("frame")
    for frame, message in (
        (good, r"one for each of \('rgb', 'nir', 'tir'\), got 1"),
        ({"thermal": good}, "unknown modality 'thermal'"),
        ({"rgb": good, "tir": good[:, :20]}, "rgb 30 x 40, tir 20 x 40: align"),
        ({"rgb": good / 255}, "rgb image holds float64"),
        ({"rgb": good, "captions": {"rgb": "A coat."}}, "encode reads no captions"),
    ):
        with pytest.raises(ValueError, match=message):
            extractor.encode(frame, [(0, 0, 9, 9)])


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_half_precision_gives_nearly_the_same_vectors(build, images, dtype):
    sample = {**moment(images, "a"), "captions": SAID}
    vector = FeatureExtractor(build())(sample)
    half = FeatureExtractor(build(), dtype=dtype)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16 if dtype == "bfloat16" else dtype}
    assert half(sample).dtype == torch.float32
    assert vector @ half(sample) > 0.99 and not torch.equal(vector, half(sample))


def test_vectors_that_are_not_numbers_do_not_get_out(rgb_only):
    with torch.no_grad():
        rgb_only.model.image_tower[0].proj.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"2 of 2 samples .* not finite, first that of '0', in torch\.float32"):
        rgb_only([pixels("a"), pixels("b")])


def test_calls_change_nothing(build, images):
    model = build(num_classes=5).train()
    extractor = FeatureExtractor(model)
    assert extractor.model is model and not any(module.training for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    extractor([{**moment(images, name), "captions": {"rgb": f"Coat {name}."}} for name in "abcd"])
    extractor.encode({"rgb": pixels("frame")}, [(0, 0, 9, 9)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules()) and torch.is_grad_enabled()
    model.train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval"):
        extractor(moment(images, "a"))


def test_threads_share_an_extractor(build, monkeypatch):
    extractor = FeatureExtractor(build())
    samples = [{"rgb": pixels(i), "captions": {"rgb": f"Coat number {i}."}} for i in range(12)]
    expected = [FeatureExtractor(build())(sample) for sample in samples]
    inside, most = [], []
    encode_text, met = extractor.model.encode_text, threading.Barrier(4, timeout=600)

    def slow(captions):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        out = encode_text(captions)
        inside.pop()
        return out

    monkeypatch.setattr(extractor.model, "encode_text", slow)

    def together(module, images):
        met.wait()  # four are here at once, or none goes on

    extractor.model.image_tower.register_forward_pre_hook(together)
    with ThreadPoolExecutor(4) as pool:
        vectors = list(pool.map(extractor, samples))
    assert max(most) == 1 and len(most) == 12
    assert all(torch.equal(a, b) for a, b in zip(vectors, expected, strict=True))


def test_a_name_is_built_with_its_weights(build, images, tmp_path, caplog, monkeypatch):
    model = build(seed=5)
    nextreid.save_model(model, tmp_path / "model")
    paths = moment(images, "a")
    assert torch.equal(FeatureExtractor(f"local-dir:{tmp_path / 'model'}")(paths), FeatureExtractor(model)(paths))
    assert FeatureExtractor("baseline_tiny", pretrained=False)(paths).shape == (192,)
    assert not caplog.records
    asked = {}

    def create(name, **kwargs):
        asked.update(kwargs, name=name)
        return build("baseline_tiny", pretrained_cfg_overlay={"clip": ("ViT-B-16", "openai"), "file": None})

    monkeypatch.setattr(feature_extractor, "create_model", create)
    FeatureExtractor("baseline_clip_b16", pretrained=False)
    assert asked == {"name": "baseline_clip_b16", "pretrained": False} and not caplog.records
    FeatureExtractor("baseline_clip_b16")
    assert asked == {"name": "baseline_clip_b16", "pretrained": True}
    assert "not trained to tell identities apart" in caplog.text


def test_arguments_are_checked(build):
    model = build("baseline_tiny")
    for arguments, message in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"dtype": "half"}, "dtype must be one of float32, bfloat16, float16, int8, got 'half'"),
        ({"dtype": torch.int16}, "dtype must be one of"),
        ({"dtype": "int8"}, "int8 needs a check set"),
        ({"window": {"lwir": "minmax"}}, r"window names \['lwir'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureExtractor(model, **arguments)
    with pytest.raises(ValueError, match="cannot be named 'captions'"):
        FeatureExtractor(build("baseline_tiny", modalities=("rgb", "captions")))


def test_the_package_names_it_without_its_weight():
    code = (
        "import sys, nextreid\n"
        "assert not {'nextreid.data', 'nextreid.engine'} & set(sys.modules)\n"
        "from nextreid import FeatureExtractor\n"
        "assert FeatureExtractor is sys.modules['nextreid.engine'].FeatureExtractor\n"
        "try: nextreid.Extractor\n"
        "except AttributeError as error: assert 'Extractor' in str(error)\n"
        "else: raise SystemExit('found')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
