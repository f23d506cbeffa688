import json
import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextreid.data import (
    Sample,
    caption_sampler,
    draw_sentences,
    keep_quality,
    read_captions,
    seeded_rng,
    split_sentences,
)
from nextreid.data.captions import add_captions, portable_name
from nextreid.towers import pack_sentences

FIVE = ("A.", "B.", "C.", "D.", "E.")
TEXT = st.text(st.sampled_from('aBc1 .!?("[*-é长\n\t,eg'), max_size=80) | st.text(max_size=40)


def test_read_captions(tmp_path: Path) -> None:
    path = tmp_path / "train_RGB.json"
    entries = [{"item": "b.jpg", "description": "A Citroën. 长安."}, {"item": "a.jpg", "description": ""}]
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    assert list(read_captions(path).items()) == [("b.jpg", "A Citroën. 长安."), ("a.jpg", "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"item": "a"}', "holds a dict"),
        ('[{"item": "a"}]', 'entry 0 needs strings "item" and "description"'),
        ('[{"item": "a", "description": "x"}, ["b"]]', "entry 1 needs"),
        ('[{"item": "a", "description": 3}]', "entry 0 needs"),
        ('[{"item": "a", "description": "x"}, {"item": "a", "description": "y"}]', "entry 1 names 'a' a second time"),
    ],
)
def test_bad_caption_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train_RGB.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_captions(path)
    assert "train_RGB.json" in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.just("\ud800 x"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["item", "description", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40) | st.just(b"[" * 200_000))
def test_any_file_is_captions_or_one_named_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "train_RGB.json"
    path.write_bytes(data)
    try:
        captions = read_captions(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(item, str) and text.encode() is not None for item, text in captions.items())


def test_a_name_that_is_no_unicode_is_joined_to_its_file(tmp_path: Path) -> None:
    name = os.fsdecode("stra\u00dfe.jpg".encode("latin-1"))  # a file as Linux lists it
    assert portable_name("stra\u00dfe.jpg") == "stra\u00dfe.jpg" and portable_name(name) == "stra\\udcdfe.jpg"
    for item in (name, portable_name(name)):
        (tmp_path / "all_RGB.json").write_text(json.dumps([{"item": item, "description": "A man."}]))
        sample = Sample(name, 0, 0, -1, (np.zeros((2, 2, 3), np.uint8),))
        assert add_captions([sample], tmp_path, "all", ("rgb",), [])[0].captions == (("A man.",),)


def test_one_string_is_one_sentence_never_its_letters() -> None:
    text = "A man. He walks."
    assert draw_sentences(text, seeded_rng("x")) == (text,) and draw_sentences(" ", seeded_rng("x")) == ()
    assert caption_sampler([[text, ""]], ["a"], [(0, 0)], 0)(0, 0, 0) == (text,)


def test_binary_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["\xff\xfe\xfa"]')
    with pytest.raises(ValueError, match=r"a\.json is not JSON: .*utf-8"):
        read_captions(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        read_captions(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("caption", "sentences"),
    [
        ("", ()),
        (" \r\n ", ()),
        ("A man.", ("A man.",)),
        ("A man.  He runs!\r\n\r\nIs it? 3 bags.", ("A man.", "He runs!", "Is it?", "3 bags.")),
        ("Shoes, e.g. Nike or i.e. Adidas. [view] rear.", ("Shoes, e.g. Nike or i.e. Adidas.", "[view] rear.")),
        ("At 3.5 m. it stands (blurry). (Maybe.)", ("At 3.5 m. it stands (blurry). (Maybe.)",)),
    ],
)
def test_split_sentences(caption: str, sentences: tuple[str, ...]) -> None:
    assert split_sentences(caption) == sentences


@given(TEXT)
def test_splitting_loses_nothing(caption: str) -> None:
    sentences = split_sentences(caption)
    assert " ".join(sentences) == " ".join(caption.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


@given(st.integers(0, 7), st.integers(0, 999), st.sampled_from([None, 0.0, 0.3, 1.0]))
def test_drawn_sentences_are_a_subset_in_order(n: int, key: int, keep: float | None) -> None:
    sentences = tuple(f"{i}." for i in range(n))
    drawn = draw_sentences(sentences, seeded_rng(key), keep)
    assert list(drawn) == sorted(set(drawn)) and set(drawn) <= set(sentences)
    assert bool(drawn) == bool(n)
    if keep == 1.0:
        assert drawn == sentences
    if keep == 0.0:
        assert len(drawn) == min(n, 1)


def test_size_is_uniform_and_then_the_subset() -> None:
    drawn = Counter(draw_sentences(FIVE[:3], seeded_rng(i)) for i in range(9000))
    sizes = Counter({k: sum(c for s, c in drawn.items() if len(s) == k) for k in (1, 2, 3)})
    assert all(abs(count - 3000) < 200 for count in sizes.values())
    assert len(drawn) == 7
    assert all(abs(drawn[s] - 1000) < 130 for s in drawn if len(s) < 3)


def test_keep_is_the_probability_of_each_sentence() -> None:
    drawn = Counter(draw_sentences(FIVE[:2], seeded_rng(i), keep_ratio=0.5) for i in range(8000))
    expected = {("A.", "B."): 2000, ("A.",): 3000, ("B.",): 3000}
    assert all(abs(drawn[s] - count) < 200 for s, count in expected.items())


@pytest.mark.parametrize("unit", ["sentence", "word"])
@pytest.mark.parametrize(("count", "share"), [(1, 0.35), (5, 0.35), (5, 0.7), (2, 0.7), (20, 0.35), (3, 1.0), (0, 0.5)])
def test_quality_keeps_a_share_in_expectation(unit: str, count: int, share: float) -> None:
    words = [f"w{i:02d}" for i in range(count)]
    caption = words if unit == "sentence" else [" ".join(words[:2]), " ".join(words[2:])]
    sizes, seen = Counter(), Counter()
    for i in range(3000):
        kept = keep_quality(caption, share, seeded_rng("quality", i), unit)
        left = [word for sentence in kept for word in sentence.split()]
        assert left == sorted(left) and set(left) <= set(words) and all(kept)
        sizes[len(left)] += 1
        seen.update(left)
    exact = share * count
    assert all(abs(size - exact) < 1 - 1e-6 or size == exact for size in sizes)  # rounded up or down, never further
    assert sum(size * n for size, n in sizes.items()) / 3000 == pytest.approx(exact, abs=0.04)
    assert all(seen[word] / 3000 == pytest.approx(share, abs=0.04) for word in words)  # and no word is preferred


def test_quality_rejects_what_is_no_share_and_no_unit() -> None:
    with pytest.raises(ValueError, match="sentence, word"):
        keep_quality(FIVE, 0.5, seeded_rng(0), "letter")
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            keep_quality(FIVE, share, seeded_rng(0))


def draw_captions(captions, keys, draws, experts, seed):
    """Rows of M captions, sample by sample and for each expert."""
    sample = caption_sampler(captions, keys, draws, seed)
    return [[sample(i, m, e) for m in range(len(captions[i]))] for i in range(len(captions)) for e in range(experts)]


def test_draws_depend_neither_on_batch_nor_on_order() -> None:
    captions = [[FIVE, FIVE, ()], [FIVE, FIVE[:2], FIVE], [FIVE, (), FIVE]]
    keys, draws = ["a", "b", "c"], [(0, 0), (0, 1), (0, 2)]
    rows = draw_captions(captions, keys, draws, 2, seed=3)
    assert len(rows) == 6 and all(len(row) == 3 for row in rows)
    assert rows[0][2] == ()
    order = [2, 0]
    again = draw_captions([captions[i] for i in order], [keys[i] for i in order], [draws[i] for i in order], 2, seed=3)
    assert again == rows[4:6] + rows[0:2]
    expected = draw_sentences(FIVE, seeded_rng("caption", 3, 0, 1, "b", 1, 0))
    assert rows[1 * 2 + 1][0] == expected


def test_experts_modalities_slots_epochs_and_seeds_draw_differently() -> None:
    many = tuple(f"{i}." for i in range(30))
    base = draw_captions([[many, many]], ["a"], [(0, 0)], 2, seed=0)
    others = [
        draw_captions([[many, many]], ["a"], [(1, 0)], 2, seed=0),
        draw_captions([[many, many]], ["a"], [(0, 1)], 2, seed=0),
        draw_captions([[many, many]], ["a"], [(0, 0)], 2, seed=1),
        draw_captions([[many, many]], ["b"], [(0, 0)], 2, seed=0),
    ]
    drawn = [sentences for rows in (base, *others) for row in rows for sentences in row]
    assert len(set(drawn)) == len(drawn) == 20


def test_bad_draws_are_rejected() -> None:
    with pytest.raises(ValueError, match="differ in length: 1, 2, 1"):
        caption_sampler([[FIVE]], ["a", "b"], [(0, 0)], seed=0)
    with pytest.raises(ValueError, match="keep"):
        draw_sentences(FIVE, seeded_rng(0), keep_ratio=1.5)


FIGURES = [
    # captions, sentence uses, distinct sentences, longest sentence in tokens
    ("NEXT/RGBNT201", 14361, 68999, 2914, 47),
    ("NEXT/MSVR310", 6261, 55729, 3075, 28),
    ("IDEA/RGBNT201", 14361, 43578, 12819, 268),
]


@pytest.fixture(scope="module")
def count_tokens() -> Callable[[str], int]:
    tokenizer = pytest.importorskip("open_clip").tokenizer.SimpleTokenizer()

    @cache
    def count(text: str) -> int:
        return 2 + len(tokenizer.encode(text))

    return count


@pytest.mark.parametrize(("folder", "captions", "uses", "distinct", "longest"), FIGURES)
def test_published_captions_split_and_pack(
    published_captions: Path,
    count_tokens: Callable[[str], int],
    folder: str,
    captions: int,
    uses: int,
    distinct: int,
    longest: int,
) -> None:
    if not (published_captions / folder).is_dir():
        pytest.skip(f"no {folder} in {published_captions}")
    texts = [t for path in sorted((published_captions / folder).glob("*.json")) for t in read_captions(path).values()]
    split = {text: split_sentences(text) for text in texts}
    for text, sentences in split.items():
        assert " ".join(sentences) == " ".join(text.split())
    assert len(texts) == captions
    assert sum(len(split[text]) for text in texts) == uses
    sentences = {sentence for parts in split.values() for sentence in parts}
    assert len(sentences) == distinct
    assert max(map(count_tokens, sentences)) == longest

    # byte-pair merges never cross a space, so the count of joined sentences is the sum; checked on some windows below
    def count(text: str) -> int:
        return 2 + sum(pieces(part) for part in split_sentences(text))

    @cache
    def pieces(part: str) -> int:
        return count_tokens(part) - 2

    cut = []
    windows = {text: pack_sentences(parts, count) for text, parts in split.items()}
    for number, (text, packed) in enumerate(windows.items()):
        assert "".join("".join(packed).split()) == "".join(text.split())
        if " ".join(packed) != " ".join(text.split()):
            cut.append(max(map(count_tokens, text.split())))
        assert all(count(window) <= 77 for window in packed)
        if number % 50 == 0:
            assert [count_tokens(window) for window in packed] == [count(window) for window in packed]
    # only text without spaces (IDEA has answers in Chinese) is cut between characters
    assert all(tokens > 77 for tokens in cut)
    total = sum(len(windows[text]) for text in texts)
    most = max(map(len, windows.values()))
    several = sum(len(windows[text]) > 1 for text in texts)
    print(  # noqa: T201
        f"{folder}: {captions} captions, {len(split)} distinct, {uses} sentences, {distinct} distinct, longest "
        f"{longest} tokens; {total} windows of 77 tokens, {total / captions:.3f} per caption, at most {most}, "
        f"{several / captions:.1%} of the captions need more than one, {len(cut)} have a word that is longer"
    )
    assert several == sum(sum(map(pieces, split[text])) + 2 > 77 for text in texts)
