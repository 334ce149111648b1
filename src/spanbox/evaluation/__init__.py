"""Evaluation: feature extraction and all metrics."""
