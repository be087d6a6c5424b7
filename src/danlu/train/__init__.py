"""Objectives, optimisers, checkpoints and the one training loop."""
