import pytest

from nextreid.captioning import Parsed, compose, parse

Everything = dict[tuple[str, str, str], list[tuple[str, Parsed]]]
SCHEMAS = {"RGBNT201": "person", "MSVR310": "vehicle"}


@pytest.mark.parametrize(
    ("schema", "sentence", "values"),
    [
        ("person", "A adult male seen from the back.", {"age": "adult", "gender": "male", "view": "back"}),
        (
            "person",
            "She is wearing a white dress, paired with casual casual shoes.",
            {
                "upper_clothing_color": "white",
                "upper_clothing": "dress",
                "footwear_style": "casual",
                "footwear": "casual shoes",
            },
        ),
        ("person", "An adult non-binary person.", {"age": "adult", "gender": "non-binary"}),
        (
            "person",
            "He is wearing a dark (possibly black or dark blue) jacket with black trousers, paired with casual "
            "sneakers.",
            {
                "upper_clothing_color": "dark (possibly black or dark blue)",
                "upper_clothing": "jacket",
                "lower_clothing_color": "black",
                "lower_clothing": "trousers",
                "footwear_style": "casual",
                "footwear": "sneakers",
            },
        ),
        ("person", "She is wearing a dress.", {"upper_clothing": "dress"}),
        ("person", "She is wearing an off-shoulder top.", {"upper_clothing": "off-shoulder top"}),
        ("person", "Short hair and not wearing glasses.", {"hair_length": "short", "glasses": "no"}),
        (
            "person",
            "He is wearing glasses and carrying a backpack.",
            {"glasses": "yes", "carrying": "backpack", "backpack": "yes"},
        ),
        (
            "person",
            "He is holding a phone and carrying backpack.",
            {"holding": "phone", "carrying": "backpack", "backpack": "yes"},
        ),
        ("person", "She is carrying none.", {"carrying": "none"}),
        ("person", "She is not holding anything.", {"holding": "none"}),
        (
            "person",
            "He is not carrying a handbag, not carrying a backpack, and not dragging a suitcase.",
            {"handbag": "no", "backpack": "no", "suitcase": "no"},
        ),
        (
            "person",
            "He is not carrying a handbag, backpack, or suitcase.",
            {"handbag": "no", "backpack": "no", "suitcase": "no"},
        ),
        ("person", "She is dragging a suitcase.", {"suitcase": "yes"}),
        (
            "vehicle",
            "A white Land Rover SUV viewed from the back in bright daytime light (image appears blurry).",
            {
                "color": "white",
                "branding": "Land Rover",
                "vehicle_type": "SUV",
                "view": "back",
                "illumination": "bright",
                "capture_time": "daytime",
                "target_clarity": "blurry",
            },
        ),
        ("vehicle", "A sedan viewed from the side.", {"vehicle_type": "sedan", "view": "side"}),
        ("vehicle", "It features rectangular taillights.", {"taillights_shape": "rectangular"}),
        (
            "vehicle",
            "It features oval taillights, complemented by a clean flat roof sitting above used medium street tires "
            "with intact bumpers.",
            {
                "taillights_shape": "oval",
                "roof_condition": "clean",
                "roof_type": "flat",
                "tires_condition": "used",
                "tire_size": "medium",
                "tires_type": "street",
                "bumper_condition": "intact",
            },
        ),
        (
            "vehicle",
            "The sloped roof sits above medium regular tires.",
            {"roof_type": "sloped", "tire_size": "medium", "tires_type": "regular"},
        ),
        (
            "vehicle",
            "The vehicle shows used wear with curved windows.",
            {"exterior_condition": "used", "window_style": "curved"},
        ),
        ("vehicle", "It features off headlights.", {"headlights_condition": "off"}),
        ("vehicle", "License plate is not visible.", {"license_plate": "not visible"}),
        ("vehicle", "Side mirrors are present.", {"side_mirrors": "present"}),
        ("vehicle", "The exhaust system features a single pipe.", {"exhaust_type": "single"}),
    ],
)
def test_sentences(schema: str, sentence: str, values: dict[str, str]) -> None:
    read = parse(sentence, schema)
    assert read.complete and read.values == values


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ("person", "A [age] [gender] seen from the front during nighttime in dim lighting."),
        ("person", "She is none."),
        ("person", "I cannot tell."),
        ("person", "hair."),
        ("vehicle", "A cat sat."),
        ("vehicle", "The intact bumpers."),
        ("vehicle", "It features."),
        ("vehicle", "The vehicle shows."),
    ],
)
def test_what_fits_no_frame_is_left_over(schema: str, sentence: str) -> None:
    assert parse(sentence, schema).leftover == (sentence,)
    assert parse(sentence, schema).sentences == ("",)


def test_a_frame_that_comes_twice_is_left_over_the_second_time() -> None:
    read = parse("Spoiler is present. Spoiler is not present.", "vehicle")
    assert read.values == {"spoiler": "present"} and read.leftover == ("Spoiler is not present.",)
    assert parse("", "person") == Parsed({})


def test_published_captions_are_read_in_full(parsed_captions: Everything) -> None:
    """Figures measured on the published files; the goal was 99.6 % over all."""
    read = {key: sum(p.complete for _, p in rows) for key, rows in parsed_captions.items()}
    total = {key: len(rows) for key, rows in parsed_captions.items()}
    assert sum(total.values()) == 14361 + 6261
    assert sum(read.values()) / sum(total.values()) >= 0.998
    for key in read:
        assert read[key] / total[key] >= 0.995, key


def test_published_captions_are_written_again(parsed_captions: Everything) -> None:
    """Byte by byte, with the phrasing that was read; the goal was 93 % in every file."""
    for (name, split, modality), rows in parsed_captions.items():
        same = sum(
            " ".join(compose(read.values, SCHEMAS[name], modality, phrasing=read.phrasing)) == text
            for text, read in rows
        )
        assert same / len(rows) >= (0.97 if name == "RGBNT201" else 0.99), (name, split, modality)


def test_rewritten_published_captions_are_undamaged(parsed_captions: Everything) -> None:
    from nextreid.captioning.audit import find_defects

    for (name, _, modality), rows in parsed_captions.items():
        for text, read in rows[::5]:
            caption = " ".join(compose(read.values, SCHEMAS[name], modality))
            assert set(find_defects(caption, modality)) <= {"bright night", "not ASCII"}, (text, caption)
