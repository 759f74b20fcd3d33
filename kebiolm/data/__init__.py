"""Formats and readers that preprocessing and training share."""
