"""Which search links the mentions: the exact one, or scispaCy's approximate one for comparison with its results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kebiolm.data.knowledge_base import KnowledgeBase
from kebiolm.errors import UserError
from preprocessing.linker.index import LinkIndex

if TYPE_CHECKING:
    from preprocessing.linker.scispacy_hnsw import ScispacyHnsw

EXACT, SCISPACY_HNSW = "exact", "scispacy-hnsw"

# Inside the knowledge base's folder, because it is an index of its names; its manifest does not list it.
_HNSW_FOLDER = "scispacy_linker"


def load_linker(linker: str, kb: Path, *, check_hash: bool = True) -> LinkIndex | ScispacyHnsw:
    """Open what `--linker` names.

    Args:
        linker: "exact": the index of the knowledge base; "scispacy-hnsw": scispaCy's index of the same names, built
            where it is asked for the first time; or the folder of a published scispaCy linker.
        kb: folder of the knowledge base.
        check_hash: also compare every file's SHA-256.

    Returns:
        An index with `link_above`, `concepts` and `fingerprint`.

    Raises:
        UserError: there is no such index, or a file of it is missing or altered.
    """
    knowledge_base = KnowledgeBase.load(kb, check_hash=False)
    if linker == EXACT:
        return LinkIndex.load(knowledge_base.linker_path, check_hash=check_hash)
    folder = kb / _HNSW_FOLDER if linker == SCISPACY_HNSW else Path(linker)
    if linker != SCISPACY_HNSW and not folder.is_dir():
        expected = f"{EXACT}, {SCISPACY_HNSW}, or the folder of a scispaCy linker"
        raise UserError("--linker", got=linker, expected=expected, mend="give one of these")
    # nmslib and scikit-learn, which the exact search does without.
    from preprocessing.linker.scispacy_hnsw import ScispacyHnsw, build_scispacy_hnsw

    names = knowledge_base.names()
    if not folder.is_dir():
        build_scispacy_hnsw(names["name"], folder, threads=os.cpu_count() or 1)
    return ScispacyHnsw.load(folder, names["name"], names["cui"], check_hash=check_hash)


def describe_linker(linker: str, kb: Path) -> dict[str, str]:
    """What identifies the search in a manifest: its kind and its fingerprint; raises as `load_linker` does."""
    kind = linker if linker in (EXACT, SCISPACY_HNSW) else f"{SCISPACY_HNSW}, published"
    return {"kind": kind, "sha256": load_linker(linker, kb).fingerprint}
