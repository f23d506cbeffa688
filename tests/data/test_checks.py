"""A clean set has no findings; each planted fault is found under its own name and nothing else is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextreid.captioning.text import clip_token_counter
from nextreid.data import ImageFile, ReIDDataset, Sample, load_dataset
from nextreid.data.checks import check_dataset
from nextreid.data.checks.findings import spread
from nextreid.retrieval import get_protocol
from nextreid.synthetic import write_folder_layout

MODALITIES = ("rgb", "nir", "tir")
SPLITS = ("train", "query", "gallery")


def words(text):
    """A tokenizer for tests: one token a word, and two marks."""
    return len(text.split()) + 2


def write(path, seed=0, size=(6, 12)):
    """Write grey noise, too small to be called noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(path)
    return path


def build(folder, train=8, test=3, cameras=2, frames=2):
    """Identities 0 … train - 1 to train, 100 … to test, each with `frames` samples at each camera."""
    samples = {"train": [], "test": []}
    seed = 0
    for split, ids in (("train", range(train)), ("test", range(100, 100 + test))):
        for pid in ids:
            for camid in range(cameras):
                for frame in range(frames):
                    key = f"{pid:04d}_c{camid}_{frame}.png"
                    images = []
                    for modality in MODALITIES:
                        (folder / split / modality).mkdir(parents=True, exist_ok=True)
                        images.append(write(folder / split / modality / key, seed := seed + 1))
                    text = tuple((f"In {m} the person {key} walks.", "A bag is seen.") for m in MODALITIES)
                    samples[split].append(Sample(key, pid, camid, -1, tuple(images), text))
    tests = tuple(samples["test"])
    return ReIDDataset("mine", MODALITIES, "person", "camera", tuple(samples["train"]), tests, tests)


@pytest.fixture
def clean(tmp_path):
    return build(tmp_path)


def check(dataset, protocol=None, **options):
    protocol = get_protocol(protocol or dataset.protocol)
    return check_dataset(
        dataset, protocol.exclude, protocol=protocol.name, **{"count_tokens": words, "num_ids": 8, **options}
    )


def found(report):
    return {(finding.level, finding.code, finding.count) for finding in report.findings}


def change(dataset, split, number, **fields):
    """Change one sample of a split; query and gallery hold the same objects, so "test" changes both."""
    out = {}
    for name in ("query", "gallery") if split == "test" else (split,):
        samples = list(getattr(dataset, name))
        samples[number] = replace(samples[number], **fields)
        out[name] = tuple(samples)
    if split == "test":
        out["gallery"] = out["query"]
    return replace(dataset, **out)


def relabel(dataset, splits=SPLITS, **labels):
    """Give every sample of these splits the same labels, or what a function makes of it."""
    known = {}

    def new(sample):
        fields = {name: value(sample) if callable(value) else value for name, value in labels.items()}
        return known.setdefault(id(sample), replace(sample, **fields))

    return replace(dataset, **{split: tuple(map(new, getattr(dataset, split))) for split in splits})


def caption(dataset, split, number, modality, *sentences):
    sample = getattr(dataset, "query" if split == "test" else split)[number]
    text = list(sample.captions)
    text[MODALITIES.index(modality)] = sentences
    return change(dataset, split, number, captions=tuple(text))


def image(dataset, split, number, modality, image):
    sample = getattr(dataset, "query" if split == "test" else split)[number]
    images = list(sample.images)
    images[MODALITIES.index(modality)] = image
    return change(dataset, split, number, images=tuple(images))


def path_of(dataset, split, number, modality):
    return getattr(dataset, split)[number].images[MODALITIES.index(modality)]


# images


def truncated(data):
    path = path_of(data, "train", 3, "tir")
    path.write_bytes(path.read_bytes()[:-60])
    return data


def text_for_image(data):
    path_of(data, "query", 1, "rgb").write_text("no image")
    return data


def gone(data):
    path_of(data, "query", 1, "nir").unlink()
    return data


def sixteen_bits(data):
    values = np.arange(72, dtype=np.uint16).reshape(12, 6) * 100
    Image.fromarray(values).save(path_of(data, "train", 0, "tir"))
    return data


def declared_size(data):
    return image(data, "train", 0, "rgb", ImageFile(path_of(data, "train", 0, "rgb"), None, (12, 12)))


def uneven(data):
    write(path_of(data, "gallery", 2, "tir"), 7, size=(6, 10))
    return data


def missing(data):
    return caption(image(data, "train", 5, "nir", None), "train", 5, "nir")


def no_thermal_in_test(data):
    def without(sample):
        return (*sample.images[:2], None)

    def silent(sample):
        return (*sample.captions[:2], ())

    return relabel(data, ("query", "gallery"), images=without, captions=silent)


def copied(data, source, target):
    """Overwrite one image by another; each is (split, number, modality)."""
    path_of(data, *target).write_bytes(path_of(data, *source).read_bytes())
    return data


def black(data):
    Image.new("RGB", (6, 12)).save(path_of(data, "train", 2, "nir"))
    Image.new("L", (6, 12)).save(path_of(data, "query", 2, "nir"))
    return data


# The clean set: training identity i has the samples 4 i … 4 i + 3, the first two at camera 0; test alike.
IMAGES = {
    "truncated": (truncated, {("error", "unreadable", 1)}),
    "text for image": (text_for_image, {("error", "unreadable", 1)}),
    "gone": (gone, {("error", "unreadable", 1)}),
    "16 bits": (sixteen_bits, {("error", "many-bits", 1)}),
    "declared size": (declared_size, {("error", "wrong-size", 1)}),
    "uneven": (uneven, {("warning", "uneven-sizes", 1)}),
    "missing": (missing, {("note", "missing-modality", 1)}),
    "missing everywhere": (no_thermal_in_test, {("warning", "missing-modality", 12)}),
    "same identity": (
        lambda d: copied(d, ("train", 0, "rgb"), ("train", 1, "rgb")),
        {("warning", "copy", 1)},
    ),
    "two identities": (
        lambda d: copied(d, ("query", 0, "tir"), ("query", 4, "tir")),
        {("error", "identity-conflict", 1)},
    ),
    "train and test": (
        lambda d: copied(d, ("train", 0, "rgb"), ("query", 4, "rgb")),
        {("error", "train-test-copy", 1)},
    ),
    "another modality": (
        lambda d: copied(d, ("train", 0, "rgb"), ("train", 0, "nir")),
        {("warning", "modality-copy", 1)},
    ),
    "black twice": (black, {("warning", "flat-image", 2)}),
}


@pytest.mark.parametrize(("plant", "expected"), IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_planted_images(clean, plant, expected, workers):
    assert found(check(plant(clean), workers=workers)) == expected


def test_quick_opens_no_image(clean):
    assert found(check(gone(truncated(clean)), images=False)) == set()
    assert found(check(missing(clean), images=False)) == {("note", "missing-modality", 1)}


def test_bad_images_are_named_with_their_modality(clean):
    (finding,) = check(truncated(clean)).findings
    (example,) = finding.examples
    assert str(path_of(clean, "train", 3, "tir")) in example and "tir" in example
    assert "(train tir 1)" in finding.message


def test_the_same_pixels_in_another_format_are_a_copy(clean):
    other = path_of(clean, "train", 1, "rgb")
    with Image.open(path_of(clean, "train", 0, "rgb")) as pixels:
        pixels.save(other, "BMP")
    assert found(check(clean)) == {("warning", "copy", 1)}


def test_the_same_values_in_another_shape_are_no_copy(clean):
    with Image.open(path_of(clean, "train", 0, "rgb")) as pixels:
        turned = np.asarray(pixels).reshape(6, 12, 3)
    for modality in MODALITIES:  # all of one size
        Image.fromarray(np.roll(turned, MODALITIES.index(modality), axis=0)).save(path_of(clean, "train", 1, modality))
    assert found(check(clean)) == {("warning", "odd-size", 3)}


def test_parts_of_one_file_are_images_of_their_own(tmp_path):
    file = write(tmp_path / "three.png", size=(18, 12))
    parts = tuple(ImageFile(file, (6 * i, 0, 6 * i + 6, 12), (18, 12)) for i in range(3))
    train = tuple(Sample(f"{pid}", pid, 0, -1, parts if pid == 0 else (None, None, parts[0])) for pid in range(2))
    report = check(ReIDDataset("cropped", MODALITIES, "vehicle", "camera", train, (), ()), num_ids=2)
    assert report.splits["train"]["sizes"]["rgb"] == {"6x12": 1}
    assert ("error", "identity-conflict", 1) in found(report) and "wrong-size" not in {f.code for f in report.findings}


def test_a_query_copied_into_the_gallery_under_its_key_is_one_sample(clean, tmp_path):
    """As RGBNT100 is published: the folder query holds copies of gallery files."""
    copies = []
    for number, sample in enumerate(clean.query[:3]):
        paths = [tmp_path / f"{number}{m}.png" for m in MODALITIES]
        for path, source in zip(paths, sample.images, strict=True):
            path.write_bytes(source.read_bytes())
        copies.append(replace(sample, images=tuple(paths)))
    assert found(check(replace(clean, query=tuple(copies)))) == set()


def test_every_image_is_decoded_once_and_counted(clean):
    seen = []
    report = check(clean, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 44) for i in range(44)]
    assert report.splits["train"]["sizes"] == {m: {"6x12": 32} for m in MODALITIES}


# labels


def one_camera(data):
    return relabel(data, camid=3)


def lonely_identity(data):
    """The last test identity is at camera 0 only."""
    return relabel(data, ("query", "gallery"), camid=lambda s: 0 if s.pid == 102 else s.camid)


LABELS = {
    "no identity": (lambda d: change(d, "train", 0, pid=-1), {}, {("error", "no-identity", 1)}),
    "unknown identity in the query": (lambda d: change(d, "test", 0, pid=-1), {}, {("error", "no-identity", 1)}),
    "unknown identity in the gallery": (
        lambda d: replace(d, query=d.query[1:], gallery=(replace(d.gallery[0], pid=-1), *d.gallery[1:])),
        {},
        set(),
    ),
    "train and test share": (
        lambda d: relabel(d, ("query", "gallery"), pid=lambda s: 7 if s.pid == 101 else s.pid),
        {},
        {("warning", "identity-in-train-and-test", 1)},
    ),
    "two of one": (lambda d: replace(d, train=d.train[:-2]), {}, set()),
    "single": (lambda d: replace(d, train=d.train[:-3]), {}, {("warning", "single-sample", 1)}),
    "few identities": (lambda d: d, {"num_ids": 9}, {("warning", "few-identities", 8)}),
    "one identity": (lambda d: replace(d, train=d.train[:4]), {}, {("error", "few-identities", 1)}),
    "one camera": (one_camera, {}, {("error", "no-match-camera", 12)}),
    "one camera, protocol none": (one_camera, {"protocol": "none"}, set()),
    "no camera": (lambda d: relabel(d, camid=-1), {}, {("error", "no-match-camera", 12)}),
    "no camera, protocol none": (lambda d: relabel(d, camid=-1), {"protocol": "none"}, set()),
    "some without camera": (lambda d: change(d, "test", 0, camid=-1), {}, {("warning", "no-camera", 1)}),
    "identity at one camera": (lonely_identity, {}, {("warning", "no-match-camera", 4)}),
    "identity at one camera, protocol none": (lonely_identity, {"protocol": "none"}, {("note", "one-camera", 1)}),
    "no scene": (lambda d: d, {"protocol": "scene"}, {("error", "no-match-scene", 12)}),
    "some without scene": (
        lambda d: change(relabel(d, sceneid=lambda s: s.camid), "test", 0, sceneid=-1),
        {"protocol": "scene"},
        {("warning", "no-scene", 1)},
    ),
    "scenes": (lambda d: relabel(d, sceneid=lambda s: s.camid), {"protocol": "scene"}, set()),
    "identity missing in the gallery": (
        lambda d: replace(d, gallery=tuple(s for s in d.gallery if s.pid != 100)),
        {},
        {("warning", "no-match-identity", 4)},
    ),
    "gallery has only the query": (
        lambda d: replace(d, query=d.query[:5], gallery=d.gallery[:5]),
        {},
        {("warning", "no-match-itself", 1)},
    ),
    "no gallery": (lambda d: replace(d, gallery=()), {}, {("error", "empty-split", 1)}),
    "only training": (lambda d: replace(d, query=(), gallery=()), {}, {("note", "empty-split", 2)}),
    "case": (lambda d: change(d, "test", 1, key=d.query[0].key.upper()), {}, {("warning", "case-key", 1)}),
    "duplicate key": (lambda d: change(d, "train", 1, key=d.train[0].key), {}, {("error", "duplicate-key", 1)}),
    "key of two identities": (
        lambda d: replace(d, query=(replace(d.query[0], pid=102), *d.query[1:]), gallery=d.gallery),
        {"images": False},
        {("error", "key-conflict", 1)},
    ),
    "unlabelled": (lambda d: relabel(d, pid=-1, camid=-1), {}, {("note", "unlabelled", 0)}),
}


@pytest.mark.parametrize(("plant", "options", "expected"), LABELS.values(), ids=LABELS)
def test_planted_labels(clean, plant, options, expected):
    assert found(check(plant(clean), **options)) == expected


def test_the_hint_for_one_camera_says_what_to_do(clean):
    for camid, what in ((3, "every sample has camid 3"), (-1, "no sample has a camid")):
        (finding,) = check(relabel(clean, camid=camid)).findings
        assert (
            finding.message.startswith("queries that can never match: 12 of 12; ")
            and "protocol camera" in finding.message
        )
        assert what in finding.hint and "protocol 'none'" in finding.hint


@pytest.mark.parametrize(("numbers", "expected"), [([5, 1, 9, 2], [1, 2, 9]), ([3, 1, 2], [1, 2, 3]), ([], None)])
def test_spread(numbers, expected):
    assert spread(numbers) == expected


def test_facts_of_the_clean_set(clean):
    report = check(clean)
    train, query = report.splits["train"], report.splits["query"]
    assert (train["samples"], train["ids"], train["cameras"], train["scenes"]) == (32, 8, 2, 0)
    assert train["samples_per_id"] == [4, 4, 4] and train["cameras_per_id"] == [2, 2, 2]
    assert train["ids_per_camera"] == {"0": 8, "1": 8} and query["ids_per_camera"] == {"0": 3, "1": 3}
    assert train["captions"] == train["images"] == dict.fromkeys(MODALITIES, 32)
    assert query["positives_per_query"] == [2, 2, 2]
    assert query["valid_queries"] == {"camera": 12, "scene": 0, "none": 12}


# captions


def tail(data, *sentences):
    return caption(data, "train", 0, "tir", *sentences)


CAPTIONS = {
    "missing": (lambda d: tail(d), {("warning", "no-caption", 1)}),
    "for no image": (
        lambda d: image(d, "train", 4, "tir", None),
        {("note", "missing-modality", 1), ("warning", "stray-caption", 1)},
    ),
    "blank": (lambda d: tail(d, " ...", "-"), {("warning", "blank-caption", 1)}),
    "open slot": (lambda d: tail(d, "A [age] man."), {("warning", "open-slot", 1)}),
    "choices": (lambda d: tail(d, "Short | medium hair."), {("warning", "choices", 1)}),
    "unknown": (lambda d: tail(d, "His shoes are unclear.", "The bag is Unknown."), {("note", "unknown-word", 1)}),
    "long caption": (lambda d: tail(d, *["He walks on."] * 30), {("note", "long-caption", 1)}),
    "just fits": (lambda d: tail(d, *["He walks on."] * 25), set()),
    "long sentence": (
        lambda d: tail(d, "very " * 76 + "long."),
        {("note", "long-caption", 1), ("warning", "long-sentence", 1)},
    ),
    "in test": (lambda d: caption(d, "test", 0, "rgb"), {("warning", "no-caption", 1)}),
    "none at all": (lambda d: relabel(d, captions=()), set()),
}


@pytest.mark.parametrize(("plant", "expected"), CAPTIONS.values(), ids=CAPTIONS)
def test_planted_captions(clean, plant, expected):
    assert found(check(plant(clean), images=False)) == expected


def test_an_unknown_rule_is_named(clean):
    with pytest.raises(ValueError, match="exclude must be one of camera, scene, none; got 'view'"):
        check_dataset(clean, "view")


def test_lengths_need_a_tokenizer_and_captions_can_be_left_out(clean):
    data = tail(clean, "very " * 76 + "long [age].")
    assert found(check(data, images=False, count_tokens=None)) == {("warning", "open-slot", 1)}
    assert found(check(data, images=False, window=200)) == {("warning", "open-slot", 1)}
    assert found(check(data, images=False, captions=False)) == set()


# shares over 77 tokens and of unknown-like words, as measured when the captions were published: rgb, nir, tir
PUBLISHED = {
    ("NEXT", "rgbnt201", "train"): ((0.7, 0.0, 0.0), (8.2, 1.3, 0.6)),
    ("NEXT", "rgbnt201", "test"): ((0.8, 0.0, 0.0), (9.0, 1.9, 0.6)),
    ("NEXT", "msvr310", "train"): ((98.3, 99.0, 91.2), (0.1, 0.1, 0.4)),
    ("NEXT", "msvr310", "test"): ((97.9, 98.5, 92.4), (0.0, 0.1, 0.7)),
    ("IDEA", "rgbnt201", "train"): ((2.2, 3.9, 5.1), (45.5, 54.4, 47.0)),
    ("IDEA", "rgbnt201", "test"): ((3.7, 2.6, 6.1), (43.4, 61.0, 45.7)),
}
DAMAGED = {("NEXT", "rgbnt201"): {"open-slot": 2, "choices": 17}, ("NEXT", "msvr310"): {}}


def published(home, source, name):
    """The published captions with one synthetic image, an array, for each."""
    from nextreid.data import read_captions, split_sentences

    pixels = np.zeros((2, 2, 3), np.uint8)
    splits = {}
    for split in ("train", "test"):
        texts = [read_captions(home / source / name.upper() / f"{split}_{m}.json") for m in ("RGB", "NI", "TI")]
        splits[split] = tuple(
            Sample(key, int(key.split("_")[0]), 0, -1, (pixels,) * 3, tuple(split_sentences(t[key]) for t in texts))
            for key in sorted(texts[0])
        )
    return ReIDDataset(name, MODALITIES, "any", "none", splits["train"], splits["test"], splits["test"])


@pytest.mark.parametrize(
    ("source", "name", "tolerance"),
    [
        ("NEXT", "msvr310", 0.051),
        pytest.param("NEXT", "rgbnt201", 0.051, marks=pytest.mark.slow),
        # what counts as unknown was another list of words there
        pytest.param("IDEA", "rgbnt201", 0.61, marks=pytest.mark.slow),
    ],
)
def test_published_captions(published_captions, source, name, tolerance):
    data = published(published_captions, source, name)
    report = check_dataset(data, "none", images=False, count_tokens=clip_token_counter())
    assert report.ok
    by_code = {finding.code: finding for finding in report.findings}
    for split in ("train", "test"):
        for code, shares in zip(("long-caption", "unknown-word"), PUBLISHED[source, name, split], strict=True):
            for modality, share in zip(MODALITIES, shares, strict=True):
                text = by_code[code].message.split("(", 1)[1].rstrip(")")
                stated = dict(entry.rsplit(" ", 1) for entry in text.split(", "))
                given = float(stated.get(f"{split} {modality}", "0%").rstrip("%"))
                exact = 0.051 if code == "long-caption" else tolerance
                assert given == pytest.approx(share, abs=exact), (code, split, modality)
    for code in ("open-slot", "choices") if (source, name) in DAMAGED else ():
        assert (by_code[code].count if code in by_code else 0) == DAMAGED[source, name].get(code, 0)


# the report


def test_a_report_as_text_and_as_json(clean):
    assert check(clean).ok and not check(clean).findings
    assert str(check(clean)).endswith("\nusable: 0 errors, 0 warnings, 0 notes")
    data = replace(missing(relabel(truncated(clean), camid=0)), notes=("one file was left out",))
    report = check(data)
    assert [finding.level for finding in report.findings] == ["error", "error", "note", "note"]
    assert not report.ok and report.of_level("note")[1].message == "one file was left out"
    text = str(report)
    for finding in report.findings:
        assert f"{finding.level} [{finding.code}] {finding.message}" in text and finding.hint in text
    assert "5 of 12 shown" in text and text.endswith("not usable as it is: 2 errors, 0 warnings, 2 notes")
    table = json.loads(json.dumps(report.to_dict()))
    assert table["ok"] is False and table["protocol"] == "camera" and table["splits"]["train"]["ids"] == 8
    assert [finding["code"] for finding in table["findings"]] == [finding.code for finding in report.findings]


def test_the_table_is_aligned(clean):
    lines = str(check(clean)).splitlines()
    table = lines[2 : lines.index("* lowest/median/highest")]
    assert table[0].split() == list(SPLITS)
    ends = {len(line) for line in table if len(line.split()) > 1 and not line.rstrip().endswith("-")}
    assert len(ends) == 1


def test_a_written_folder_tree_is_clean(tmp_path: Path):
    persons = load_dataset("synthetic-persons", num_train=8, num_test=3, frames_per_visit=2)
    read = load_dataset("rgbnt201", write_folder_layout(persons, tmp_path), captions=tmp_path)
    report = check(read)
    assert report.ok and [finding.code for finding in report.of_level("warning")] == ["incomplete-copy"]
    assert check(persons).splits["query"]["ids_per_camera"] == report.splits["query"]["ids_per_camera"]


def test_every_code_is_in_the_documentation():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "checking.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    listed = {row.split("`")[1] for row in rows}
    planted = {code for table in (IMAGES, LABELS, CAPTIONS) for row in table.values() for _, code, _ in row[-1]}
    elsewhere = {"colour", "swapped-modalities", "shifted-modality", "near-copy", "noise-image", "odd-size", "cmyk"}
    assert listed == planted | elsewhere | {"incomplete-copy", "reader"}
