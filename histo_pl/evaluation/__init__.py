"""Logits to evidence: metrics with intervals, calibration, results, pictures and the report."""
