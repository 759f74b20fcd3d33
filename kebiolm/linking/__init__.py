"""Use a trained model: find mentions in texts, link them to concepts, turn texts into vectors.

`from kebiolm.linking import KeBioLM` is all that is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kebiolm.linking.linked_text import Candidate, LinkedMention, LinkedText

if TYPE_CHECKING:
    from kebiolm.linking.api import KeBioLM

__all__ = ["Candidate", "KeBioLM", "LinkedMention", "LinkedText"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; results, pages and tables do without it.
    if name == "KeBioLM":
        from kebiolm.linking.api import KeBioLM

        return KeBioLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
