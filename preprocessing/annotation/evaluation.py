"""How good are the mentions and their concepts? Annotated documents against gold mentions of the same documents."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from kebiolm.console import console
from kebiolm.errors import UserError
from kebiolm.files import write_json
from preprocessing.annotation.store import AnnotatedCorpus
from preprocessing.document import Document, Reject
from preprocessing.sources import find_reader
from preprocessing.sources.pubtator import GoldDocument, read_gold


@dataclass(frozen=True, kw_only=True)
class Score:
    """Precision, recall and F1 from counts; each is 0 where it would be 0/0."""

    true_positives: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        """Share of the predictions that are right, 0 to 1."""
        return self.true_positives / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold that was found, 0 to 1."""
        return self.true_positives / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        total = self.predicted + self.gold
        return 2 * self.true_positives / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Counts and shares, for a file."""
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        spans: strict: first and last character must both be right. Only linked mentions are predictions.
        linked_spans: strict spans, and the concept is one of those that the gold names. A gold mention without a known
            concept cannot be found and counts as missed.
        found_spans_with_concept: correctly found spans whose gold names a known concept.
        found_spans_right: those of them with the right concept.
        counts: documents and gold mentions that explain the figures.
    """

    spans: Score
    linked_spans: Score
    found_spans_with_concept: int
    found_spans_right: int
    counts: Mapping[str, int]

    @property
    def linking_accuracy(self) -> float:
        """Share of the correctly found spans, whose gold names a known concept, that got the right one."""
        return self.found_spans_right / self.found_spans_with_concept if self.found_spans_with_concept else 0.0

    def to_json(self) -> dict[str, Any]:
        """All figures, for a file."""
        return {
            "spans": self.spans.to_json(),
            "linked_spans": self.linked_spans.to_json(),
            "linking_accuracy_on_found_spans": self.linking_accuracy,
            "found_spans_with_concept": self.found_spans_with_concept,
            "found_spans_right": self.found_spans_right,
            "counts": dict(self.counts),
        }


def read_codes(path: Path) -> dict[str, set[str]]:
    """Read a table of code TAB CUI; a code may stand for several concepts.

    Raises:
        UserError: the file is missing or a line has no two columns.
    """
    codes: dict[str, set[str]] = defaultdict(set)
    mend = "give a text file with lines of code, tab, CUI"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, got=error, expected="a table of codes", mend=mend) from None
    for number, line in enumerate(lines, start=1):
        columns = line.split("\t")
        if len(columns) != 2 or not all(columns):
            raise UserError(f"{path}:{number}", got=f"{line[:60]!r}", expected="code TAB CUI", mend=mend)
        codes[columns[0]].add(columns[1])
    return dict(codes)


def evaluate(documents: Iterable[Document], gold: Iterable[GoldDocument], codes: Mapping[str, set[str]]) -> Evaluation:
    """Compare annotated documents with gold documents of the same ids.

    Args:
        documents: annotated documents; those that the gold does not have are left out.
        gold: gold documents; mentions of those that were not annotated count as missed.
        codes: concepts of each gold code.

    Raises:
        UserError: a document's text differs from the gold's, so that characters cannot be compared; or no document is
            in both.
    """
    gold_of = {document.doc_id: document for document in gold}
    counts: Counter[str] = Counter(gold_documents=len(gold_of))
    gold_spans = {doc_id: _gold_concepts(document, codes, counts) for doc_id, document in gold_of.items()}
    right_spans = right_links = predicted = with_concept = 0
    for document in documents:
        if document.doc_id not in gold_of:
            counts["annotated_documents_without_gold"] += 1
            continue
        counts["documents_compared"] += 1
        _check_text(document, gold_of[document.doc_id])
        concepts_of = gold_spans[document.doc_id]
        predicted += len(document.mentions)
        for mention in document.mentions:
            concepts = concepts_of.get((mention.start, mention.end))
            right_spans += concepts is not None
            with_concept += bool(concepts)
            right_links += mention.cui in (concepts or ())
    if not counts["documents_compared"]:
        raise UserError(
            "the annotated folder and the gold file",
            got="no document id in common",
            expected="the same documents",
            mend="annotate the gold file itself",
        )
    counts["gold_documents_not_annotated"] = len(gold_of) - counts["documents_compared"]
    in_gold = counts["gold_mentions"]
    with_code = in_gold - counts["gold_mentions_without_code"]
    if with_code and counts["gold_mentions_with_unmapped_code"] == with_code:
        raise UserError(
            "the table of codes",
            got=f"no concept for any of the {with_code} gold mentions that have a code",
            expected="the codes of this gold file, each with its CUI",
            mend="give the table that belongs to the gold file",
        )
    return Evaluation(
        spans=Score(true_positives=right_spans, predicted=predicted, gold=in_gold),
        linked_spans=Score(true_positives=right_links, predicted=predicted, gold=in_gold),
        found_spans_with_concept=with_concept,
        found_spans_right=right_links,
        counts=dict(sorted(counts.items())),
    )


def evaluate_and_report(annotated: Path, gold: Path, codes: Path, json_file: Path | None) -> Evaluation:
    """Evaluate a folder, print a table, and write the figures to `json_file` if one is given.

    Raises:
        UserError: an input is missing or broken, or the documents do not fit together.
    """
    corpus = AnnotatedCorpus.load(annotated)
    find_reader(gold)
    gold_records = list(read_gold(gold))
    rejects = [record for record in gold_records if isinstance(record, Reject)]
    documents = [record for record in gold_records if isinstance(record, GoldDocument)]
    if not documents:
        mend = "give a PubTator file with gold mentions"
        raise UserError(gold, got="no document", expected="PubTator", mend=mend)
    evaluation = evaluate(corpus.iter_documents(), documents, read_codes(codes))
    console.print(_table(evaluation))
    for name, count in evaluation.counts.items():
        console.print(f"{name.replace('_', ' ')}: {count:,}")
    if rejects:
        console.print(f"unreadable gold documents: {len(rejects):,}, the first: {rejects[0]}")
    if json_file:
        write_json(json_file, {**evaluation.to_json(), "unreadable_gold_documents": len(rejects)})
    return evaluation


def _gold_concepts(
    document: GoldDocument, codes: Mapping[str, set[str]], counts: Counter[str]
) -> dict[tuple[int, int], set[str]]:
    """Characters [start, end) of each gold mention -> its concepts; a span marked twice is one, with both concepts."""
    concepts: dict[tuple[int, int], set[str]] = defaultdict(set)
    has_code: Counter[tuple[int, int]] = Counter()
    for mention in document.mentions:
        span = (mention.start, mention.end)
        has_code[span] += len(mention.codes)
        concepts[span].update(cui for code in mention.codes for cui in codes.get(code, ()))
        counts["gold_offsets_beside_their_text"] += document.text[mention.start : mention.end] != mention.text
    counts["gold_mentions"] += len(concepts)
    counts["gold_mentions_without_code"] += sum(not has_code[span] for span in concepts)
    counts["gold_mentions_with_unmapped_code"] += sum(bool(has_code[span]) and not concepts[span] for span in concepts)
    return dict(concepts)


def _check_text(document: Document, gold: GoldDocument) -> None:
    if document.text != gold.text:
        raise UserError(
            f"document {document.doc_id}",
            got="a text that differs between the annotated folder and the gold file",
            expected="the same text, so that characters can be compared",
            mend="annotate the gold file itself",
        )


def _table(evaluation: Evaluation) -> Table:
    table = Table(title="Against the gold mentions (strict spans)", title_justify="left")
    for name in ("", "precision", "recall", "F1", "right", "predicted", "gold"):
        table.add_column(name, justify="right" if name else "left")
    for name, score in (("span", evaluation.spans), ("span and concept", evaluation.linked_spans)):
        shares = (f"{share:.3f}" for share in (score.precision, score.recall, score.f1))
        table.add_row(name, *shares, f"{score.true_positives:,}", f"{score.predicted:,}", f"{score.gold:,}")
    right, total = evaluation.found_spans_right, evaluation.found_spans_with_concept
    accuracy = f"{evaluation.linking_accuracy:.3f}"
    table.add_row("concept of found", accuracy, "", "", f"{right:,}", f"{total:,}", "")
    return table
