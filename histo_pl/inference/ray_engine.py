"""Prediction by Ray: processes on one or many machines, each with the model, kept at work by Ray Data."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from histo_pl.errors import UserError
from histo_pl.inference.predictor import Prediction, Predictor

FILES_A_TASK = 64  # that one process answers for before Ray looks after it again
PRIVATE = {"RAY_USAGE_STATS_ENABLED": "0"}  # Ray reports its use to its makers unless told otherwise

MakePredictor = Callable[[], Predictor]
AskSlide = Callable[[Predictor, Path, str], dict[str, Any]]
Ask = Callable[[Sequence[str], Sequence[str]], list[dict[str, Any]]]  # files and names to plain values


def predict_by_ray(make_predictor: MakePredictor, files: Sequence[Path]) -> list[Prediction]:
    """Answer for image files.

    Args:
        make_predictor: Makes the predictor in each process.
        files: The files, which every machine finds under the same path.

    Returns:
        One prediction a file, in order.

    Raises:
        UserError: Ray is not installed.
    """
    rows = _map(partial(_asks_files, make_predictor), {file: str(file) for file in files}, FILES_A_TASK)
    return [Prediction(**row) for row in rows]


def ask_slides_by_ray(make_predictor: MakePredictor, ask: AskSlide, files: Mapping[Path, str]) -> list[dict[str, Any]]:
    """Answer for slides, each by one process.

    Args:
        make_predictor: Makes the predictor in each process.
        ask: Answers for one slide, and returns its summary.
        files: The slides, and the names of their folders.

    Returns:
        A summary of each slide, in order.

    Raises:
        UserError: Ray is not installed.
    """
    return _map(partial(_asks_slides, make_predictor, ask), files, 1)


def _asks_files(make_predictor: MakePredictor) -> Ask:
    predictor = make_predictor()

    def ask(files: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
        predictions = predictor.predict(list(map(Path, files)))
        return [asdict(one) | {"file": name} for one, name in zip(predictions, names, strict=True)]

    return ask


def _asks_slides(make_predictor: MakePredictor, ask: AskSlide) -> Ask:
    predictor = make_predictor()
    return lambda files, names: [ask(predictor, Path(file), name) for file, name in zip(files, names, strict=True)]


class _Worker:
    """One process of Ray's, with its model."""

    def __init__(self, make: Callable[[], Ask]) -> None:
        self.ask = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        answers = self.ask(batch["file"].tolist(), batch["name"].tolist())
        return {"place": batch["place"].tolist(), "answer": [json.dumps(one) for one in answers]}


def _map(make: Callable[[], Ask], files: Mapping[Path, str], files_a_task: int) -> list[dict[str, Any]]:
    """Answer for all files, in order; what a process that died had not answered is asked again."""
    ray = _started_ray()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    workers = gpus or max(1, int(resources["CPU"]))
    items = [
        {"place": place, "file": str(file.absolute()), "name": name} for place, (file, name) in enumerate(files.items())
    ]
    answered = ray.data.from_items(items, override_num_blocks=-(-len(items) // files_a_task)).map_batches(
        _Worker,
        fn_constructor_args=(make,),
        batch_size=files_a_task,
        concurrency=(1, workers),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    rows = sorted(answered.iter_rows(), key=lambda row: row["place"])
    return [json.loads(row["answer"]) for row in rows]


def _started_ray() -> Any:  # noqa: ANN401
    os.environ.update(PRIVATE)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise UserError(
            f"This engine needs Ray. Install it with pip install -e '.[ray]'. Received: engine=ray, no module named "
            f"{error.name}"
        ) from error
    if not ray.is_initialized():  # RAY_ADDRESS names a cluster; else one of this machine is started
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return ray
