"""Documents in, documents with linked mentions out: the work itself, with no word about files or workers.

Mentions are found first; then the distinct texts to link, which are far fewer than the mentions, are linked once each,
and the answers are joined back. The result is what linking each mention for itself would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from preprocessing.annotation.ner import FoundMentions, MentionFinder, NerFailure
from preprocessing.document import Document, Mention, Reject
from preprocessing.linker import Candidate, LinkIndex, link_key
from preprocessing.sources.record import make_reject

DOCUMENTS_AT_ONCE = 256


@dataclass(kw_only=True)
class AnnotationCounts:
    """What one stream of documents added up to.

    Attributes:
        mentions_found: spans that the model found.
        mentions_linked: those with a concept above the threshold; only they are kept.
        texts_linked: distinct texts that were searched for in the index.
        abbreviations_skipped: documents with too many brackets to resolve abbreviations.
    """

    mentions_found: int = 0
    mentions_linked: int = 0
    texts_linked: int = 0
    abbreviations_skipped: int = 0


@dataclass(kw_only=True)
class Annotator:
    """Finds and links the mentions of documents.

    Attributes:
        finder: finds mentions.
        index: links them.
        threshold: a concept is kept where its score is strictly above this (0.85 in the paper, section 3.3).
        counts: running totals.
    """

    finder: MentionFinder
    index: LinkIndex
    threshold: float
    counts: AnnotationCounts = field(default_factory=AnnotationCounts)
    _best: dict[str, Candidate | None] = field(default_factory=dict)

    def annotate(self, records: Iterable[Document | Reject], *, source: str) -> Iterator[Document | Reject]:
        """Annotate a stream of records; each gives one, in the same order, and rejects pass through.

        Args:
            records: what a file holds.
            source: name of the file, for the rejects that are added here.
        """
        records = iter(records)
        while batch := list(islice(records, DOCUMENTS_AT_ONCE)):
            documents = [record for record in batch if isinstance(record, Document)]
            found = iter(self.finder.find([document.text for document in documents]))
            pairs = [(record, next(found) if isinstance(record, Document) else None) for record in batch]
            self._link_new_texts(result for _, result in pairs if isinstance(result, FoundMentions))
            for record, result in pairs:
                yield record if isinstance(record, Reject) else self._join(record, result, source)

    def _link_new_texts(self, results: Iterable[FoundMentions]) -> None:
        keys = {link_key(mention.link_text) for result in results for mention in result.mentions}
        new = sorted(keys - self._best.keys())
        for key, candidates in zip(new, self.index.link(new, top=1), strict=True):
            linked = candidates and candidates[0].score > self.threshold
            self._best[key] = candidates[0] if linked else None
        self.counts.texts_linked += len(new)

    def _join(self, document: Document, result: FoundMentions | NerFailure, source: str) -> Document | Reject:
        if isinstance(result, NerFailure):
            return make_reject(doc_id=document.doc_id, source=source, reason=result.reason, detail=result.detail)
        mentions = tuple(
            Mention(start=mention.start, end=mention.end, cui=best.cui, score=best.score)
            for mention in result.mentions
            if (best := self._best[link_key(mention.link_text)]) is not None
        )
        self.counts.mentions_found += len(result.mentions)
        self.counts.mentions_linked += len(mentions)
        self.counts.abbreviations_skipped += result.abbreviations_skipped
        return replace(document, mentions=mentions)
