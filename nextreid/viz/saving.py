"""The one way an image becomes a file."""

import base64
import io
from pathlib import Path

from PIL import Image

from nextreid._files import user_path, write_whole

from .plot import Plot

_DPI = 144.0
_OF_PLOTS = (".png", ".pdf", ".svg")


def check_image_path(path: str | Path) -> Path:
    """Return where an image is to be saved; ValueError if its ending is none that `save_image` writes."""
    path = user_path(path)
    if path.suffix.lower() != ".svg" and Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(
            f"cannot save {path.name!r}: unknown image suffix {path.suffix!r}; use .png, .jpg, .pdf or .svg"
        )
    return path


def save_image(image: Image.Image | Plot, path: str | Path) -> Path:
    """Save an image or a plot in the format of its suffix; a reader sees the old file or the whole new one.

    In a PDF and an SVG an image has 144 dots an inch, since photographs are none of lines; a plot is lines and letters.

    Raises:
        ValueError: If the suffix is no format that can be written.
    """
    path = check_image_path(path)
    suffix = path.suffix.lower()
    if isinstance(image, Plot):
        if suffix in _OF_PLOTS:
            plot = image
            write_whole(path, lambda temporary: plot.write(temporary, suffix[1:]))
            return path
        image = image.image()
    pixels = image
    if suffix == ".svg":
        write_whole(path, lambda temporary: temporary.write_text(_svg(pixels), encoding="utf-8"))
        return path
    options = {"resolution": _DPI} if suffix == ".pdf" else {}
    write_whole(path, lambda temporary: pixels.save(temporary, Image.registered_extensions()[suffix], **options))
    return path


def _svg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = (72 / _DPI * pixels for pixels in image.size)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}pt" height="{height:g}pt" '
        f'viewBox="0 0 {image.width} {image.height}">'
        f'<image width="{image.width}" height="{image.height}" href="data:image/png;base64,{data}"/></svg>\n'
    )
