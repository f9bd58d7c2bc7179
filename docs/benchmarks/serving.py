"""Measure the requests a second that the server answers, how long they wait, and its memory over thousands of them.

python docs/benchmarks/serving.py TILES RUN                        # a quarter of an hour on 2 cores
python docs/benchmarks/serving.py TILES RUN --requests 200 --many 0

TILES is a folder of tiles, RUN a training's folder. The server runs in a process of its own, the clients in threads of
this one, on the same cores, each sending requests of 8 tiles. The Predictor's own rate is that of reading the same
files and answering for them in batches of 8, without a server, measured before and after.
Needs pip install -e '.[serve]'.
"""

import argparse
import http.client
import re
import statistics
import subprocess
import sys
import threading
import time
from itertools import cycle, islice
from pathlib import Path

from histo_pl import Predictor, load_model
from histo_pl.images import find_files, is_image

CLIENTS = 8
FILES = 8  # a request
BOUNDARY = "histo_pl_benchmark"


def main() -> None:
    """Print the rates, the waiting times and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path, metavar="TILES")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--requests", type=int, default=1000, help="of 8 tiles, timed (default: 1000)")
    parser.add_argument("--many", type=int, default=10_000, help="of one tile, for the memory (default: 10000)")
    options = parser.parse_args()
    files = list(islice(cycle([file for file in find_files(options.tiles) if is_image(file)]), 40 * FILES))
    own = [own_rate(options.run, files)]
    server, port = start(options.run)
    try:
        eights = [body_of(files[begin : begin + FILES]) for begin in range(0, len(files), FILES)]
        load(port, eights, 5 * CLIENTS)  # warm
        waited, seconds = load(port, eights, options.requests)
        rate = len(waited) / seconds
        own.append(own_rate(options.run, files))
        share = rate * FILES / statistics.mean(own)
        ordered = sorted(waited)
        print(
            f"{len(waited)} of {options.requests} requests of {FILES} tiles answered to {CLIENTS} clients: {rate:.1f} "
            f"requests a second, {rate * FILES:.1f} tiles; the Predictor alone {own[0]:.1f} and {own[1]:.1f} tiles: "
            f"{share:.0%}. Waited: median {1000 * statistics.median(waited):.0f} ms, p99 "
            f"{1000 * ordered[int(0.99 * len(ordered))]:.0f} ms, longest {1000 * ordered[-1]:.0f} ms",
            flush=True,
        )
        ones = [body_of([file]) for file in files[:100]]
        for _ in range(10 if options.many else 0):
            waited, seconds = load(port, ones, options.many // 10)
            print(
                f"{len(waited)} requests of one tile in {seconds:.0f} s: anonymous memory {anonymous(server)} MiB",
                flush=True,
            )
    finally:
        server.terminate()
        server.wait()


def own_rate(run: str, files: list[Path]) -> float:
    """Return the tiles a second of a Predictor that reads files and answers in batches of 8."""
    predictor = Predictor(load_model(run), "cpu", batch_size=FILES)
    list(predictor.predict(files[: 4 * FILES]))
    start = time.perf_counter()
    answered = len(list(predictor.predict(files)))
    return answered / (time.perf_counter() - start)


def start(run: str) -> tuple[subprocess.Popen[str], int]:
    """Start a server, and return its process and port."""
    program = [sys.executable, "-m", "histo_pl", "serve", run, "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    lines = [server.stdout.readline(), server.stdout.readline()]
    return server, int(re.findall(r":(\d+) \(", lines[1])[0])


def body_of(files: list[Path]) -> bytes:
    """Return the multipart body of a request."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'.encode()
        + file.read_bytes()
        + b"\r\n"
        for file in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def load(port: int, bodies: list[bytes], requests: int) -> tuple[list[float], float]:
    """Send requests by `CLIENTS` at once, and return the seconds that each answered one took, and those of all."""
    waited: list[float] = []
    numbers = iter(range(requests))
    lock = threading.Lock()

    def client() -> None:
        link = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            start = time.perf_counter()
            link.request("POST", "/api/predict", bodies[number % len(bodies)], headers)
            answer = link.getresponse()
            answer.read()
            if answer.status == http.HTTPStatus.OK:
                waited.append(time.perf_counter() - start)

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    start = time.perf_counter()
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    return waited, time.perf_counter() - start


def anonymous(process: subprocess.Popen[str]) -> int:
    """Return the anonymous memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) // 1024


if __name__ == "__main__":
    main()
