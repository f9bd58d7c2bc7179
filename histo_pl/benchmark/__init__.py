"""Benchmark of this machine: reading, training, prediction, each contender in a process of its own."""

from histo_pl.benchmark.contest import BenchmarkWorker, alternate, table
from histo_pl.benchmark.run import benchmark

__all__ = ["BenchmarkWorker", "alternate", "benchmark", "table"]
