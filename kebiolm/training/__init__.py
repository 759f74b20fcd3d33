"""Pretraining: configuration, DeepSpeed engine, loop, evaluation, checkpoints and report."""
