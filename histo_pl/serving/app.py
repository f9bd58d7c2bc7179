"""The application: the page, and the API that it asks."""

import asyncio
import base64
import hashlib
import io
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from histo_pl import __version__
from histo_pl.errors import UserError
from histo_pl.inference import Prediction, Predictor
from histo_pl.models.checkpoint import CANNOT_TELL, SYNTHETIC
from histo_pl.models.evidence import METHODS, method_for
from histo_pl.overlays import color_limit, overlay_map, smooth_map
from histo_pl.pages import render_page
from histo_pl.serving.limits import Limits, RequestError
from histo_pl.serving.schemas import FORM, NO_ANSWER, OF_EVERY_REQUEST, REFUSALS, Answers, Health, Row
from histo_pl.serving.security import Guard
from histo_pl.serving.uploads import Upload, decode_uploads, read_uploads
from histo_pl.serving.worker import Worker

PAGE = Path(__file__).with_name("serve.html.j2")
MAP_SIDE = 448  # pixels of an evidence map, at most
CLIENT_GONE = 499  # nobody reads this status


def create_app(
    predictor: Predictor,
    facts: dict[str, Any],
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Sequence[str] = (),
) -> FastAPI:
    """Make the application.

    Args:
        predictor: The model.
        facts: What `GET /api/model` answers, see `model_card.facts_of_card`.
        limits: Of each request; None: the defaults.
        token: What the API asks for; None: nothing.
        hosts: See `Guard`.
    """
    service = Service(predictor, facts, limits or Limits())
    page = service.page(asks_token=token is not None)
    app = FastAPI(
        title="histo_pl",
        version=__version__,
        description="A second opinion on breast histology tiles (H&E). Research software, no medical device.",
        lifespan=service.lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_unknown)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    app.add_middleware(Guard, token=token, hosts=hosts, policy=_policy(page))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def get_page() -> str:
        return page

    @app.get("/health", summary="A sign of life")
    async def get_health() -> Health:
        return Health(status="ok")

    @app.get("/api/model", summary="Facts of the model's card, and the limits of a request", responses=OF_EVERY_REQUEST)
    async def get_model() -> dict[str, Any]:
        return service.facts

    @app.post(
        "/api/predict",
        summary="Answers for one or many tiles",
        response_model=Answers,
        responses=REFUSALS | NO_ANSWER,
        openapi_extra=FORM,
    )
    async def post_predict(request: Request, explain: bool = False) -> JSONResponse:
        answers = await service.answer(request, explain=explain)
        answered = any(row.error is None for row in answers.predictions)
        return JSONResponse(answers.model_dump(), 200 if answered else 422)

    return app


class Service:
    """The model behind the API, and the requests that wait for it.

    Args:
        predictor: The model.
        facts: Facts of its card.
        limits: Of each request.
    """

    def __init__(self, predictor: Predictor, facts: dict[str, Any], limits: Limits) -> None:
        self.predictor = predictor
        self.limits = limits
        self.waiting = 0
        self.worker: Worker | None = None
        method, reason = _explains(predictor)
        self.facts = facts | {
            "novelty": predictor.tells_novelty,
            "evidence_map": method,
            "no_evidence_map": reason,
            "limits": vars(limits),
        }

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Keep the model's thread while the server runs."""
        self.worker = Worker(self.predictor)
        yield
        await asyncio.to_thread(self.worker.close)

    def page(self, *, asks_token: bool) -> str:
        """Return the page's HTML."""
        model = self.predictor.model
        notes = [SYNTHETIC] if model.data["synthetic"] else []
        notes += [] if self.predictor.tells_novelty else [CANNOT_TELL]
        title = "A second opinion on breast histology tiles"
        return render_page(PAGE, title=title, notes=notes, facts=self.facts, asks_token=asks_token)

    async def answer(self, request: Request, *, explain: bool) -> Answers:
        """Answer a request.

        Args:
            request: Its body is not read yet.
            explain: Add evidence maps.

        Raises:
            RequestError: The request exceeds a limit, or cannot be read.
        """
        if explain and self.facts["evidence_map"] is None:
            raise RequestError(400, "no_evidence_map", self.facts["no_evidence_map"])
        with self._place():
            try:
                async with asyncio.timeout(self.limits.seconds):
                    uploads = await read_uploads(request, self.limits)
                    return await self._ask(uploads, explain)
            except TimeoutError as error:
                message = f"It took longer than {self.limits.seconds:g} seconds. Send fewer files at a time."
                raise RequestError(408, "too_slow", message) from error
            except ClientDisconnect as error:
                raise RequestError(CLIENT_GONE, "client_gone", "The client has gone.") from error

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self.waiting >= self.limits.waiting:
            message = f"{self.waiting} requests wait already. Try again in a second."
            raise RequestError(429, "busy", message)
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _ask(self, uploads: Sequence[Upload], explain: bool) -> Answers:
        assert self.worker is not None
        decoded = await asyncio.to_thread(decode_uploads, uploads, self.predictor.model, self.limits)
        images = [one for one in decoded if isinstance(one, Tensor)]
        names = [upload.name for upload, one in zip(uploads, decoded, strict=True) if isinstance(one, Tensor)]
        predictions: Sequence[Prediction] = ()
        maps: Sequence[str | None] = [None] * len(images)
        if images:
            predictions = await asyncio.wrap_future(self.worker.predict(names, torch.stack(images)))
            maps = [await self._map(image) for image in images] if explain else maps
        answered = iter([Row.of(*pair) for pair in zip(predictions, maps, strict=True)])
        return Answers(
            predictions=[
                next(answered) if isinstance(one, Tensor) else Row.of(self._unanswered(upload.name, one))
                for upload, one in zip(uploads, decoded, strict=True)
            ]
        )

    def _unanswered(self, name: str, reason: str) -> Prediction:
        return Prediction(name, None, None, reason, self.predictor.model.trained_on)

    async def _map(self, image: Tensor) -> str:
        assert self.worker is not None
        evidence = await asyncio.wrap_future(self.worker.explain(image[None]))
        return await asyncio.to_thread(_draw_map, image, evidence.maps[0])


def _explains(predictor: Predictor) -> tuple[str | None, str | None]:
    """Return what an evidence map of this model shows, or the reason why it has none."""
    try:
        method = method_for(predictor.network)
    except UserError as error:
        return None, str(error)
    return (None if method is None else METHODS[method]), None


def _draw_map(image: Tensor, evidence: Tensor) -> str:
    """Draw the map (S, S) of a tile (3, S, S) as a PNG in a data URI."""
    drawn = smooth_map(evidence)
    overlay = Image.fromarray(overlay_map(image.permute(1, 2, 0).numpy(), drawn, color_limit([drawn])))
    overlay.thumbnail((MAP_SIDE, MAP_SIDE))
    stream = io.BytesIO()
    overlay.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _policy(page: str) -> str:
    """Write a Content-Security-Policy that lets this page's own style and script run, and nothing else."""

    def sources(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{one}'" for one in hashes)

    return (
        f"default-src 'none'; style-src {sources('style')}; script-src {sources('script')}; img-src blob: data:; "
        f"connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    )


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    body = {"error": {"code": error.code, "message": str(error)}}
    return JSONResponse(body, error.status, {"Retry-After": "1"} if error.status == 429 else None)  # noqa: PLR2004


async def _refuse_unknown(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{error.detail}. Expected one of /, /health, /api/model, /api/predict, /openapi.json."
    return await _refuse(request, RequestError(error.status_code, "no_such_request", message))


async def _refuse_query(request: Request, _: Exception) -> JSONResponse:
    message = "The address's query is not as expected. Expected explain=true, explain=false, or none."
    return await _refuse(request, RequestError(400, "bad_query", message))
