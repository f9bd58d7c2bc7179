"""Conversion from and to other formats of models."""
