"""One thread that asks one model, about the tiles of several requests at once where they wait."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue

import torch
from torch import Tensor

from histo_pl.inference import Prediction, Predictor
from histo_pl.models.evidence import Evidence


@dataclass
class _Job:
    """Tiles of one request, uint8 of shape (B, 3, S, S), and who waits for their predictions."""

    names: Sequence[str]
    images: Tensor
    answer: Future[list[Prediction]] = field(default_factory=Future)


@dataclass
class _Explanation:
    """A tile, uint8 of shape (1, 3, S, S), and who waits for its evidence map."""

    image: Tensor
    answer: Future[Evidence] = field(default_factory=Future)


class _Stop:
    """The end of the thread."""


class Worker:
    """A model in a thread of its own; requests wait in a queue.

    Args:
        predictor: The model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._queue: Queue[_Job | _Explanation | _Stop] = Queue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def predict(self, names: Sequence[str], images: Tensor) -> Future[list[Prediction]]:
        """Ask about images.

        Args:
            names: Of B images.
            images: uint8 of shape (B, 3, S, S), B at least 1.
        """
        job = _Job(names, images)
        self._queue.put(job)
        return job.answer

    def explain(self, image: Tensor) -> Future[Evidence]:
        """Ask for the evidence map of one image, uint8 of shape (1, 3, S, S)."""
        job = _Explanation(image)
        self._queue.put(job)
        return job.answer

    def close(self) -> None:
        """End the thread once it has answered what waits."""
        self._queue.put(_Stop())
        self._thread.join()

    def _run(self) -> None:
        job = self._queue.get()
        while not isinstance(job, _Stop):
            following = None
            if isinstance(job, _Explanation):
                self._explain(job)
            else:
                jobs, following = self._join_waiting(job)
                self._predict(jobs)
            job = following or self._queue.get()

    def _join_waiting(self, job: _Job) -> tuple[list[_Job], _Explanation | _Stop | None]:
        """Take further jobs that wait until a batch is full, or something else comes, which is returned too."""
        jobs = [job]
        with suppress(Empty):
            while sum(len(one.names) for one in jobs) < self.predictor.batch_size:
                following = self._queue.get_nowait()
                if not isinstance(following, _Job):
                    return jobs, following
                jobs.append(following)
        return jobs, None

    def _explain(self, job: _Explanation) -> None:
        if not job.answer.set_running_or_notify_cancel():
            return
        try:
            job.answer.set_result(self.predictor.explain(job.image))
        except Exception as error:  # it belongs to the request
            job.answer.set_exception(error)

    def _predict(self, jobs: Sequence[_Job]) -> None:
        wanted = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            names = [name for job in wanted for name in job.names]
            images = torch.cat([job.images for job in wanted])
            predictions: list[Prediction] = []
            for start in range(0, len(names), self.predictor.batch_size):
                part = slice(start, start + self.predictor.batch_size)
                predictions += self.predictor.predict_images(names[part], images[part])
        except Exception as error:  # it belongs to the requests
            for job in wanted:
                job.answer.set_exception(error)
            return
        start = 0
        for job in wanted:
            job.answer.set_result(predictions[start : start + len(job.names)])
            start += len(job.names)
