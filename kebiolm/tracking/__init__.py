"""Figures of a run: a local spool first, MLflow from there, by a process of its own; sync, system metrics, summary."""
