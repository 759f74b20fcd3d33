"""Pretraining: configuration, DeepSpeed engine, loop, checkpoints and tracking."""
