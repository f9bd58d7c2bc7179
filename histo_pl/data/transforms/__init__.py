"""Augmentations of training tiles."""
