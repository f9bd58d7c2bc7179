"""Limits of a request, and the errors of one that exceeds them."""

from collections.abc import Mapping
from dataclasses import dataclass

from histo_pl.errors import UserError

LIMITS: Mapping[str, str] = {  # and what they bound, for people
    "files": "files a request",
    "file_bytes": "bytes of a file",
    "request_bytes": "bytes of a request",
    "pixels": "pixels of an image",
    "seconds": "seconds from a request's first byte to its answer",
    "waiting": "requests that are read or wait at a time; a further one is turned away",
    "dropped": "files that the page takes at a time, and sends in several requests",
}


@dataclass(frozen=True)
class Limits:
    """Bounds of what one request may ask for, see `LIMITS`; all positive.

    Raises:
        UserError: One is not above 0.
    """

    files: int = 32
    file_bytes: int = 20_000_000
    request_bytes: int = 64_000_000
    pixels: int = 50_000_000
    seconds: float = 60.0
    waiting: int = 16
    dropped: int = 1000

    def __post_init__(self) -> None:
        """Refuse what no request could keep."""
        for name in LIMITS:
            if not getattr(self, name) > 0:
                option = name.replace("_", "-")
                raise UserError(
                    f"A limit is out of range. Expected above 0. Received: --{option} {getattr(self, name)}"
                )


class RequestError(Exception):
    """A request that is refused, with an HTTP status, a code for programs and a message for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
