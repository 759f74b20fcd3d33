"""Abstracts -> documents with linked mentions: one step per file, and the job that runs them."""
