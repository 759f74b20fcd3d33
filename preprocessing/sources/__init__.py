"""Files of abstracts, whatever their format, as one stream of records: each is a `Document` or a counted `Reject`."""

from __future__ import annotations

from preprocessing.sources.open_source import find_reader, open_source

__all__ = ["find_reader", "open_source"]
