"""Benchmark of this machine: reading, training, prediction, each worker in a process of its own."""

from histo_pl.benchmark.run import benchmark
from histo_pl.benchmark.workers import BenchmarkWorker, alternate, table

__all__ = ["BenchmarkWorker", "alternate", "benchmark", "table"]
