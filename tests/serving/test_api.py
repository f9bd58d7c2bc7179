import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from histo_pl import Predictor, UserError, load_model
from histo_pl.interop.model_card import facts_of_card
from histo_pl.serving.app import create_app
from histo_pl.serving.limits import Limits
from histo_pl.serving.run import serve
from histo_pl.serving.uploads import _MemoryParser
from tests.conftest import draw_image
from tests.serving.server import Server

LIMITS = Limits(files=4, file_bytes=100_000, request_bytes=300_000, pixels=10_000, seconds=20, waiting=2)


@pytest.fixture(scope="module")
def make_client(trained: Path) -> Iterator[Callable[..., TestClient]]:
    model = load_model(trained)
    clients = []

    def make(limits: Limits = LIMITS, **options: Any) -> TestClient:
        facts = facts_of_card(trained / "best.ckpt", model)
        app = create_app(Predictor(model, "cpu"), facts, limits, **options)
        clients.append(TestClient(app, base_url="http://127.0.0.1:8000").__enter__())
        return clients[-1]

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


def png(seed: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def form(*contents: bytes, name: str = "tile{}.png") -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name.format(number), content)) for number, content in enumerate(contents)]


def test_the_api_answers_as_predict(client: TestClient, trained: Path, tmp_path: Path) -> None:
    files = [draw_image(tmp_path / f"{number}.png", number, (32, 40)) for number in range(3)]
    answer = client.post("/api/predict", files=form(*(file.read_bytes() for file in files)))
    assert answer.status_code == 200
    for row, wanted in zip(answer.json()["predictions"], Predictor(load_model(trained)).predict(files), strict=True):
        assert row["probability"] == pytest.approx(wanted.probability, abs=1e-6)
        assert row["novelty"] == pytest.approx(wanted.novelty, rel=1e-5)
        assert (row["label"], row["note"], row["trained_on"]) == (wanted.label, wanted.note, "synthetic demo")


def test_the_model_is_described_as_its_results(client: TestClient, trained: Path) -> None:
    facts = client.get("/api/model").json()
    results = json.loads((trained / "results.json").read_text())
    assert facts["results"]["by_tile"] == results["test"] and facts["results"]["by_case"] == results["test_by_case"]
    assert facts["synthetic"] and facts["limits"]["files"] == 4
    assert client.get("/health").json() == {"status": "ok"}


def test_an_evidence_map_is_a_picture(client: TestClient) -> None:
    pytest.importorskip("captum")
    answer = client.post("/api/predict?explain=true", files=form(png())).json()["predictions"][0]
    assert answer["evidence_map"].startswith("data:image/png;base64,")


def test_files_without_an_answer_have_their_reason(client: TestClient) -> None:
    bomb = io.BytesIO()
    Image.new("1", (40_000, 10_000)).save(bomb, "PNG")
    tiles = form(png(), b"no image", b"", bomb.getvalue())
    answer = client.post("/api/predict", files=tiles)
    assert answer.status_code == 200
    reasons = [row["error"] for row in answer.json()["predictions"]]
    assert reasons[0] is None
    assert "no image of a known format" in reasons[1] and "empty" in reasons[2] and "too many pixels" in reasons[3]
    others = form(png(size=(300, 20)), name="large.png") + form(b"x" * 100_001) + form(b"", name="slide.svs")
    answer = client.post("/api/predict", files=others)
    assert answer.status_code == 422  # none has an answer
    reasons = [row["error"] for row in answer.json()["predictions"]]
    assert "over twice as large" in reasons[0] and "too large" in reasons[1] and "predict.py" in reasons[2]
    assert client.post("/api/predict", files=form(png())).status_code == 200


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        ({"files": form(*[b"x"] * 5)}, 413, "too_many_files"),
        ({"files": form(*[b"x" * 90_000] * 4)}, 413, "request_too_large"),
        ({"content": iter([b"x"] * 3)}, 415, "no_form"),
        ({"files": [("other", ("a.png", b"x"))]}, 400, "no_files"),
        ({"data": {"files": "text"}, "files": form(b"x")}, 400, "no_files"),
        ({"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}}, 400, "bad_form"),
    ],
)
def test_a_request_beyond_a_limit_is_refused(
    client: TestClient, request_of: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/api/predict", **request_of)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_what_the_api_does_not_have_is_refused_in_the_same_words(client: TestClient) -> None:
    for answer, status in ((client.get("/docs"), 404), (client.get("/api/predict"), 405)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, "no_such_request")
    answer = client.post("/api/predict?explain=perhaps", files=form(png()))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_query")


def test_a_body_of_unsaid_length_is_cut_off(client: TestClient) -> None:
    boundary = b"b"
    start = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'

    def endless() -> Iterator[bytes]:
        yield start
        for _ in range(100):
            yield b"x" * 10_000

    headers = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    assert client.post("/api/predict", content=endless(), headers=headers).status_code == 413


def test_uploads_are_never_moved_to_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _MemoryParser.spool_max_size == 0
    monkeypatch.setattr("tempfile._TemporaryFileWrapper", None)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", None)
    roomy = form(b"x" * 90_000, b"y" * 90_000)
    assert client.post("/api/predict", files=roomy).status_code == 422


def test_another_site_or_name_is_refused(client: TestClient, make_client: Callable[..., TestClient]) -> None:
    assert client.get("/health", headers={"sec-fetch-site": "cross-site"}).json()["error"]["code"] == "cross_site"
    local = make_client(hosts=("127.0.0.1", "localhost"))
    assert local.get("/health").status_code == 200
    assert local.get("/health", headers={"host": "evil.example:8000"}).json()["error"]["code"] == "wrong_host"
    for origin in ("http://evil.example", "null"):
        refused = local.get("/health", headers={"origin": origin})
        assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    assert local.get("/health", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


def test_the_api_asks_for_its_token(make_client: Callable[..., TestClient]) -> None:
    guarded = make_client(token="a-long-enough-token")
    assert guarded.get("/health").status_code == 200 and guarded.get("/").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \u00e9".encode("latin-1")}):
        assert guarded.get("/api/model", headers=headers).status_code == 401
    answer = guarded.post("/api/predict", files=form(png()), headers={"Authorization": "Bearer a-long-enough-token"})
    assert answer.status_code == 200


def test_the_page_and_every_answer_have_security_headers(client: TestClient) -> None:
    for path in ("/", "/health", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "'sha256-" in policy
    page = client.get("/").text
    assert not re.search(r"""(?:src|href)=["']https?:""", page) and "synthetic demo" in page
    assert "drawn by a program" in page


def test_openapi_names_the_form_the_answers_and_the_refusals(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    post = told["paths"]["/api/predict"]["post"]
    assert "multipart/form-data" in post["requestBody"]["content"]
    assert {"200", "400", "401", "408", "413", "415", "422", "429"} <= post["responses"].keys()
    assert told["components"]["schemas"]["Row"]["examples"][0]["label"] == "Malignant"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"host": "0.0.0.0"}, "--token"),
        ({"token": "short"}, "too easy to guess"),
        ({"host": "203.0.113.7", "token": "x" * 32}, "cannot be listened on"),
        ({"port": 99999}, "0 to 65535"),
    ],
)
def test_a_server_that_cannot_or_should_not_start_says_why(trained: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        serve(trained, **options)


def test_a_server_lives_on_when_a_client_goes_and_ends_in_order(trained: Path) -> None:
    server = Server.of(trained, "--waiting", "2")
    start = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    for _ in range(5):
        with server.connect() as link:  # each gone in mid-upload; five in turn take no place for good
            link.sendall(start + b"Content-Length: 1000\r\n\r\n--b\r\n")
            time.sleep(0.05)
    held = [server.connect() for _ in range(2)]
    for link in held:
        link.sendall(start + b"Content-Length: 1000\r\n\r\n--b\r\n")
    time.sleep(0.3)
    with server.connect() as link:
        link.sendall(start + b"Connection: close\r\nContent-Length: 1000\r\n\r\n--b\r\n")
        refused = b"".join(iter(lambda: link.recv(65536), b"")).decode()
    assert " 429 " in refused and "retry-after: 1" in refused and '"busy"' in refused
    assert '"status":"ok"' in server.get("/health")
    for link in held:
        link.close()
    assert server.stop() == 0
    assert server.process.stdout is not None and "Stopped." in server.process.stdout.read()
    assert server.process.stderr is not None and "Traceback" not in server.process.stderr.read()


def test_requests_of_many_clients_are_all_answered(make_client: Callable[..., TestClient], trained: Path) -> None:
    shared = make_client(replace(LIMITS, waiting=64))
    alone = {seed: shared.post("/api/predict", files=form(png(seed))).json() for seed in range(4)}
    found: list[tuple[int, Any]] = []

    def ask(seed: int) -> None:
        found.append((seed, shared.post("/api/predict", files=form(png(seed), b"no image")).json()["predictions"]))

    threads = [threading.Thread(target=ask, args=(number % 4,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    for seed, (good, bad) in found:
        assert good["probability"] == pytest.approx(alone[seed]["predictions"][0]["probability"], abs=1e-6)
        assert bad["error"]
