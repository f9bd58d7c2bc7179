"""A benign/malignant classifier for breast histology tiles (H&E)."""

__version__ = "0.1.0"
