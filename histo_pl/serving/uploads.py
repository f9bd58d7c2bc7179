"""Uploaded files: kept in memory, within limits, and decoded as files on the disk are."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor

from histo_pl.errors import ImageError
from histo_pl.images import read_size, read_tile
from histo_pl.inference.slide_options import is_large
from histo_pl.models.checkpoint import TrainedModel
from histo_pl.serving.limits import Limits, RequestError
from histo_pl.slides.opening import is_slide

FIELD = "files"  # of the form


@dataclass(frozen=True)
class Upload:
    """One uploaded file.

    Attributes:
        name: As its sender calls it.
        content: Its bytes.
    """

    name: str
    content: bytes


class _MemoryParser(MultiPartParser):
    spool_max_size = 0  # no limit: a file is never moved to the disk


async def read_uploads(request: Request, limits: Limits) -> list[Upload]:
    """Read the files of a multipart form, and stop at the first byte too many.

    Args:
        request: Its body is not read yet.
        limits: Of the request.

    Returns:
        At least one file.

    Raises:
        RequestError: The form is not as expected, or exceeds a limit.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(415, "no_form", f"Expected a multipart form with the files in its field {FIELD!r}.")
    parser = _MemoryParser(request.headers, _counted(request, limits), max_files=limits.files, max_fields=0)  # pyright: ignore[reportArgumentType]
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise RequestError(
                413, "too_many_files", f"A request may hold {limits.files} files. Send them in several requests."
            ) from error
        if "Too many fields" in error.message:
            message = f"A field holds text instead of a file. Expected files alone, with curl -F {FIELD}=@tile.png."
            raise RequestError(400, "no_files", message) from error
        raise RequestError(400, "bad_form", f"The form cannot be read: {error.message}") from error
    try:
        uploads: list[Any] = [upload for name, upload in form.multi_items() if name == FIELD]
        if not uploads:
            raise RequestError(400, "no_files", f"There is no file. Expected images in the form's field {FIELD!r}.")
        return [Upload(upload.filename or "unnamed", await upload.read()) for upload in uploads]
    finally:
        await form.close()


async def _counted(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    most, received = limits.request_bytes, 0
    message = f"A request may hold {most // 1_000_000} MB. Send fewer files, or ask predict.py."
    if int(request.headers.get("content-length", "0")) > most:
        raise RequestError(413, "request_too_large", message)
    async for chunk in request.stream():
        received += len(chunk)
        if received > most:
            raise RequestError(413, "request_too_large", message)
        yield chunk


def decode_uploads(uploads: Sequence[Upload], model: TrainedModel, limits: Limits) -> list[Tensor | str]:
    """Decode files at the model's image size.

    Args:
        uploads: The files.
        model: The model.
        limits: Of the request.

    Returns:
        uint8 tensors of shape (3, S, S), or in their place the reason why there is none.
    """
    return [_decode(upload, model, limits) for upload in uploads]


def _decode(upload: Upload, model: TrainedModel, limits: Limits) -> Tensor | str:
    name, content = upload.name, upload.content
    if is_slide(name):
        return f"A slide is read in tiles. Ask python predict.py ckpt=CHECKPOINT img=SLIDE. Received: {name}"
    if len(content) > limits.file_bytes:
        return (
            f"This file is too large. Expected at most {limits.file_bytes // 1_000_000} MB. "
            f"Received: {name} with {len(content) // 1_000_000} MB"
        )
    try:
        size = read_size(name, content)
        if prod(size) > limits.pixels:
            return (
                f"This image claims too many pixels. Expected at most {limits.pixels:,}. Received: {name} with "
                f"{size[0]:,} x {size[1]:,}"
            )
        own = model.tile_size
        if own is not None and is_large(size, own):
            return (
                f"This image is over twice as large as the training tiles, {own[0]} x {own[1]} pixels. Cut it into "
                f"tiles, or ask python predict.py ckpt=CHECKPOINT img=IMAGE, which does. Received: {name} with "
                f"{size[0]} x {size[1]}"
            )
        return read_tile(name, model.image_size, model.resize, content)
    except ImageError as error:
        return str(error)
