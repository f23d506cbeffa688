"""The documented example on a real clip of pedestrians, where there is one."""

import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "gallery.md"


@pytest.mark.slow
def test_names_are_kept_over_a_real_clip(tmp_path, monkeypatch):
    folder = Path(os.environ.get("NEXTREID_REAL", ""))
    if not (folder / "vtest.avi").is_file():
        pytest.skip("no vtest.avi in NEXTREID_REAL: a folder with that clip of Debian's package opencv-doc")
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "HOGDescriptor"):
        pytest.skip("OpenCV from version 5 on has no HOGDescriptor")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "vtest.avi" in code)
    namespace = {"__name__": "clip"}
    exec(compile(code, str(PAGE), "exec"), namespace)
    tracks, gallery = namespace["tracks"], namespace["Gallery"]("clip")
    names = {name for _, _, name, _ in tracks}
    assert len(tracks) == len(gallery) > 100 and names == set(gallery.identities())
    assert 1 < len(names) < len(tracks) / 3
    for number in {number for number, *_ in tracks}:  # nobody is in two places at once
        together = [name for at, _, name, _ in tracks if at == number]
        assert len(set(together)) == len(together)
    assert any(back for *_, back in tracks)
