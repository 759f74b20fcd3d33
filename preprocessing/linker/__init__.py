"""Which concept does a mention name? An index of the knowledge base's names, and exact search in it."""

from __future__ import annotations

from preprocessing.linker.index import Candidate, LinkIndex, build_link_index, link_key

__all__ = ["Candidate", "LinkIndex", "build_link_index", "link_key"]
