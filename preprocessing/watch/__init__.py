"""Seeing an annotation job: its screen, its state from outside, its check, its report, and its cost beforehand."""
