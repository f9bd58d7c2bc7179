"""Probabilities to evidence."""
