"""Folders of tiles to batches of bytes."""

from histo_pl.data.datamodule import HistologyDataModule
from histo_pl.data.synthetic.demo import DemoDataModule

__all__ = ["DemoDataModule", "HistologyDataModule"]
