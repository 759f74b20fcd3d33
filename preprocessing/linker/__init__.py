"""Which concept does a mention name? An index of the knowledge base's names, and exact search in it."""

from __future__ import annotations

from preprocessing.linker.build import build_link_index
from preprocessing.linker.index import Candidate, LinkedConcepts, LinkIndex
from preprocessing.linker.tfidf import link_key

__all__ = ["Candidate", "LinkIndex", "LinkedConcepts", "build_link_index", "link_key"]
