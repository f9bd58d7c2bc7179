"""Protection of the API and the page: a token, the names of this host, and headers."""

import hmac
import json
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Refuse what comes from other sites or without the token, and add security headers to every answer.

    Args:
        app: The application.
        token: What `/api` asks for, as `Authorization: Bearer TOKEN`; None: nothing.
        hosts: The names by which this host may be called; empty: any. Another site's name, resolving to this one,
            would let that site's page read the answers.
        policy: The Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Sequence[str], policy: str) -> None:
        self.app = app
        self.token = token
        self.hosts = hosts
        self.headers = HEADERS | {"Content-Security-Policy": policy}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
        else:
            await _refuse(send_with_headers, *refusal)

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str, str] | None:
        host = headers.get("host", "").rsplit(":", 1)[0].strip("[]")
        if self.hosts and host not in self.hosts:
            return 421, "wrong_host", "This server answers under its local name alone."
        origin = headers.get("origin")
        is_foreign = origin is not None and origin.partition("//")[2] != headers.get("host")
        if is_foreign or headers.get("sec-fetch-site") == "cross-site":
            return 403, "cross_site", "Another site's page may not ask this server."
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self.token and path.startswith("/api") and not hmac.compare_digest(given, self.token.encode()):
            return 401, "token", "The token is missing or wrong. Expected the header Authorization: Bearer TOKEN."
        return None


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []  # noqa: PLR2004
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
