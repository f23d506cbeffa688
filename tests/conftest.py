"""Tests run many tiny models: one thread each is faster than two that wait for each other on a busy machine."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published_captions() -> Path:
    """Folder with NEXT/{RGBNT201,MSVR310} and IDEA/RGBNT201; the tests that need it skip where it is absent."""
    named = os.environ.get("NEXTREID_CAPTIONS")
    home = Path(named) if named else Path(__file__).parents[2] / "shared" / "captions"
    if not (home / "NEXT" / "RGBNT201").is_dir():
        pytest.skip(f"no published captions in {home}: set NEXTREID_CAPTIONS to the folder that holds NEXT and IDEA")
    return home
