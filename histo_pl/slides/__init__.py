"""Whole slides and large photographs: read by regions, their tissue found, cut into tiles, drawn as maps. No torch."""

from histo_pl.slides.opening import open_slide
from histo_pl.slides.slide import Slide

__all__ = ["Slide", "open_slide"]
