import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.captioning.text import clip_token_counter, plain_value, with_article


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
