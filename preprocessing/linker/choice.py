"""Which search links the mentions: the exact one, or scispaCy's approximate one for comparison with its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from preprocessing.linker.index import LinkedConcepts, LinkIndex

EXACT, SCISPACY_HNSW = "exact", "scispacy-hnsw"

# Beside the tables of the knowledge base, which its manifest does not name: it is made on request only.
HNSW_FOLDER = "linker-scispacy-hnsw"


class Linker(Protocol):
    """An index that links texts."""

    @property
    def concepts(self) -> pa.LargeStringArray:
        """The CUIs; a concept's number is its place here."""

    @property
    def fingerprint(self) -> str:
        """Changes when the index may answer differently."""

    def link_above(self, mentions: Sequence[str], threshold: float) -> LinkedConcepts:
        """The best concept of each text, where its score is strictly above the threshold."""


def load_linker(linker: str, kb: Path, *, check_hash: bool = True) -> Linker:
    """Open what `--linker` names.

    Args:
        linker: "exact": the index of the knowledge base; "scispacy-hnsw": scispaCy's index of the same names, built
            into the knowledge base's folder where it is asked for the first time; or a published scispaCy linker's
            folder.
        kb: folder of the knowledge base.
        check_hash: also compare every file's SHA-256.

    Raises:
        UserError: there is no such index, or a file of it is missing or altered.
    """
    base = KnowledgeBase.load(kb, check_hash=False)
    if linker == EXACT:
        return LinkIndex.load(base.linker_path, check_hash=check_hash)
    folder = kb / HNSW_FOLDER if linker == SCISPACY_HNSW else Path(linker)
    if linker != SCISPACY_HNSW and not folder.is_dir():
        expected = f"{EXACT}, {SCISPACY_HNSW}, or the folder of a scispaCy linker"
        raise UserError("--linker", got=linker, expected=expected, mend=f"leave it out for {EXACT}")
    # nmslib and scikit-learn take seconds to import, and the exact search needs neither.
    from preprocessing.linker.scispacy_hnsw import ScispacyHnsw, build_scispacy_hnsw

    names = base.names()
    if not folder.is_dir():
        # The rarest 3-grams that count, as in the exact index: scispaCy's own setting leaves nothing of a small one.
        min_df = LinkIndex.load(base.linker_path, check_hash=False).manifest["settings"]["min_df"]
        build_scispacy_hnsw(names["name"], folder, min_df=min_df)
    return ScispacyHnsw.load(folder, names["name"], names["cui"], check_hash=check_hash)


def describe_linker(linker: str, kb: Path) -> dict[str, Any]:
    """What identifies the search in a manifest."""
    kind = linker if linker in (EXACT, SCISPACY_HNSW) else "a scispaCy linker's folder"
    return {"kind": kind, "sha256": load_linker(linker, kb).fingerprint}
