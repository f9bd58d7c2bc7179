"""Ray on two nodes of this machine."""

import csv
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from histo_pl import UserError
from histo_pl.inference.run import predict
from tests.conftest import draw_image
from tests.inference.test_slides import draw_slide
from tests.slides.test_readers import write_pyramid

TILES = 20_000
DRAWN = 50  # different ones, of which the others are links


def test_an_unknown_engine_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="null or ray"):
        predict(str(trained), str(draw_image(tmp_path / "a.png")), engine="spark")


@pytest.fixture(scope="module")
def cluster() -> Any:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def kill_a_worker(killed: list[int]) -> None:
    """Kill one of Ray's processes that has the model, once it is at work."""
    end = time.monotonic() + 120
    while not killed and time.monotonic() < end:
        time.sleep(1)
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if not entry.name.isdigit() or b"MapBatches(_Worker)" not in (entry / "cmdline").read_bytes():
                    continue
                time.sleep(5)
                os.kill(int(entry.name), signal.SIGKILL)
                killed.append(int(entry.name))
                return


@pytest.mark.slow
def test_every_tile_is_answered_once_though_a_worker_is_killed(cluster: Any, trained: Path, tmp_path: Path) -> None:
    for number in range(TILES):
        folder = tmp_path / "tiles" / str(number % 100)
        folder.mkdir(parents=True, exist_ok=True)
        if number < DRAWN:
            draw_image(tmp_path / "drawn" / f"{number}.png", number, (32, 32))
        os.link(tmp_path / "drawn" / f"{number % DRAWN}.png", folder / f"{number}.png")
    (tmp_path / "tiles" / "broken.png").write_bytes(b"no image")
    killed: list[int] = []
    thread = threading.Thread(target=kill_a_worker, args=(killed,))
    thread.start()
    options: dict[str, Any] = {"img": str(tmp_path / "tiles"), "device": "cpu"}
    assert predict(str(trained), out=str(tmp_path / "ray.csv"), engine="ray", **options) == 1
    thread.join()
    assert killed
    predict(str(trained), out=str(tmp_path / "one.csv"), **options)
    by_ray, by_one = read(tmp_path / "ray.csv"), read(tmp_path / "one.csv")
    assert [row["file"] for row in by_ray] == [row["file"] for row in by_one] and len(by_ray) == TILES + 1
    for row, wanted in zip(by_ray, by_one, strict=True):
        assert row["label"] == wanted["label"] and row["error"] == wanted["error"]
        if wanted["probability"]:
            assert float(row["probability"]) == pytest.approx(float(wanted["probability"]), abs=1e-6)


@pytest.mark.slow
def test_slides_are_answered_as_by_one_process(cluster: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    for name in ("a", "b", "c"):
        write_pyramid(tmp_path / "slides" / f"{name}.tiff", draw_slide(), 0.5)
    (tmp_path / "slides" / "d.svs").write_bytes(b"no slide")
    options: dict[str, Any] = {"img": str(tmp_path / "slides"), "device": "cpu", "mpp_tile": 0.5}
    for name, engine in (("ray", "ray"), ("one", None)):
        assert predict(str(trained), out=str(tmp_path / name), engine=engine, **options) == 1
    assert (tmp_path / "ray" / "slides.csv").read_text() == (tmp_path / "one" / "slides.csv").read_text()
    for name in ("a", "b", "c"):
        tables = [(tmp_path / run / name / "tiles.csv").read_text() for run in ("ray", "one")]
        assert tables[0] == tables[1]
