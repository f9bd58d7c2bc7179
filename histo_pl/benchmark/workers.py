"""Worker processes that are asked in turns, so that a machine whose speed drifts is fair to all."""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from histo_pl.errors import UserError


class BenchmarkWorker:
    """A process that takes a task a line, as JSON, and answers with its figures on a line.

    Args:
        command: The command line that starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
        self._process: Any = subprocess.Popen(command, text=True, bufsize=1, **pipes)

    def __enter__(self) -> Self:
        """Return the running worker."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._said.close()

    def ask(self, task: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Have a task done.

        Args:
            task: Its name.
            **options: Plain values.

        Returns:
            The figures.

        Raises:
            UserError: The process ended instead.
        """
        with suppress(BrokenPipeError):  # it has ended, and so has its output
            print(json.dumps({"task": task} | options), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._said.seek(0)
            raise UserError(
                f"A process of the benchmark ended before it answered ({task}). Received: {self._said.read()[-2000:]}"
            )
        return json.loads(answer)


def alternate(workers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure each worker once a round, after one round that does not count.

    Args:
        workers: Functions that measure and return a figure, such as seconds, by name.
        rounds: Number of rounds.

    Returns:
        Every figure by the worker's name, in order.
    """
    for measure in workers.values():
        measure()
    results: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, measure in workers.items():
            results[name].append(measure())
    return results


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the rounds' ratios, a positive number, which a drifting machine changes little."""
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def table(title: str, unit: str, results: Mapping[str, Sequence[float]]) -> str:
    """Lay out figures, such as seconds, with each worker's ratio to the first one.

    Args:
        title: Name of the measurement.
        unit: Of the figures.
        results: As `alternate` returns them.

    Returns:
        Lines of Markdown: median, least and greatest figure, and the median of the rounds' ratios.
    """
    first = next(iter(results.values()))
    lines = [f"| {title} | {unit}: median (range) | ratio |", "|---|---|---|"]
    for name, values in results.items():
        spread = f"{min(values):.4g} to {max(values):.4g}"
        lines.append(f"| {name} | {statistics.median(values):.4g} ({spread}) | {ratio(values, first):.2f} |")
    return "\n".join(lines)
