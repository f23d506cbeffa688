import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.captioning import read_captions, split_sentences
from nextreid.captioning.text import clip_token_counter, plain_value, with_article

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


def test_bytes_that_are_no_text_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["\xff\xfe\xfa"]')
    with pytest.raises(ValueError, match=r"a\.json is not JSON in UTF-8"):
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


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("jacket", "jacket"),
        ("dark (possibly black or dark blue)", "dark"),
        ("dark (possibly unknown)", "dark"),
        ("Short | medium", "Short"),
        ("[age]", ""),
        ("unknowable due to blurriness", ""),
        ("Unclear", ""),
        ("unclear_value", ""),
        ("none visible", ""),
        ("none_visible", ""),
        ("N/A", ""),
        ("not specified", ""),
        ("null", ""),
        ("?", ""),
        ("not present", "not present"),
        ("not visible", ""),
        ("none", "none"),
        ("  light   gray. ", "light gray"),
        ("school_bag", "school bag"),
        ("unclearly", "unclearly"),
    ],
)
def test_plain_value(raw: str, plain: str) -> None:
    assert plain_value(raw) == plain


@given(st.text(st.sampled_from("ab ()[]|_.,'n/?-"), max_size=20))
def test_a_plain_value_is_plain(raw: str) -> None:
    value = plain_value(raw)
    assert plain_value(value) == value
    assert not set("[(|_") & set(value) and value == " ".join(value.split())


@pytest.mark.parametrize(
    ("phrase", "written"),
    [
        ("adult male", "an adult male"),
        ("orange jacket", "an orange jacket"),
        ("umbrella", "an umbrella"),
        ("jacket", "a jacket"),
        ("uniform", "a uniform"),
        ("used tire", "a used tire"),
        ("unbuttoned shirt", "an unbuttoned shirt"),
        ("SUV", "an SUV"),
        ("MG sedan", "an MG sedan"),
        ("Mazda SUV", "a Mazda SUV"),
        ("Audi", "an Audi"),
    ],
)
def test_article(phrase: str, written: str) -> None:
    assert with_article(phrase) == written


def test_tokens_are_those_that_clip_reads() -> None:
    import open_clip

    tokenize = open_clip.get_tokenizer("ViT-B-32")
    for text in ("", "An adult male.", "A Citroën SUV viewed from the front (image appears blurry)."):
        assert clip_token_counter()(text) == int((tokenize([text])[0] != 0).sum())
