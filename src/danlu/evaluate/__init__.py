"""Predictions, baselines, and numbers with intervals."""
