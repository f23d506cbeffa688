from pathlib import Path

import pytest

from nextreid.captioning import Parsed, parse
from nextreid.data import read_captions

PUBLISHED = {"RGBNT201": "person", "MSVR310": "vehicle"}
MODALITIES = {"RGB": "rgb", "NI": "nir", "TI": "tir"}


@pytest.fixture(scope="session")
def parsed_captions(published_captions: Path) -> dict[tuple[str, str, str], list[tuple[str, Parsed]]]:
    """Every published caption of NEXT with its parse, by dataset, split and modality; read once."""
    return {
        (name, split, MODALITIES[m]): [
            (text, parse(text, schema))
            for text in read_captions(published_captions / "NEXT" / name / f"{split}_{m}.json").values()
        ]
        for name, schema in PUBLISHED.items()
        for split in ("train", "test")
        for m in MODALITIES
    }
