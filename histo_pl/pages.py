"""Pages: HTML files that need no other, all in one style, for the screen and for print."""

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histo_pl.storage import atomic_write_text


def write_page(template: Path, file: Path, **values: Any) -> None:  # noqa: ANN401
    """Fill a template that extends `page.html.j2`, and write it.

    Args:
        template: The template's file.
        file: The HTML file to write.
        **values: See `render_page`.
    """
    with atomic_write_text(file, errors="backslashreplace") as stream:
        stream.write(render_page(template, **values))


def render_page(template: Path, **values: Any) -> str:  # noqa: ANN401
    """Fill a template that extends `page.html.j2`.

    Args:
        template: The template's file.
        **values: What it names, `title` and `notes` at least; texts are escaped.
    """
    folders = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    pages = jinja2.Environment(loader=folders, autoescape=True, undefined=jinja2.StrictUndefined)
    return pages.get_template(template.name).render(**values)


def embed_jpeg(pixels: NDArray[np.uint8], most: int) -> str:
    """Shrink an image to a JPEG in base64, for a page to hold.

    Args:
        pixels: RGB of shape (H, W, 3).
        most: Its longer side afterwards, in pixels, at most.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((most, most))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
