"""MRREL -> the triples table. A row of MRREL reads "CUI2 RELA CUI1" (UMLS Reference Manual).

A triple is held as one integer (row of the subject in the concepts table, running number of the relation, row of the
object), put aside in buckets by subject, and sorted bucket by bucket.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kebiolm.data import knowledge_base
from kebiolm.errors import UserError
from preprocessing.umls.buckets import Buckets
from preprocessing.umls.concept_rows import ConceptRows
from preprocessing.umls.rrf import RrfFile
from preprocessing.umls.rrf_batches import DUPLICATE, SUPPRESSED, UNKNOWN_CUI, FileReport, Reader
from preprocessing.umls.rrf_rows import in_order
from preprocessing.umls.table_file import TableFile

EMPTY_RELA = "empty RELA"
SELF_LOOP = "self-loop"
_FACT_COLUMNS = ("CUI1", "CUI2", "RELA")
REL_COLUMNS = (*_FACT_COLUMNS, "SUPPRESS")

_SUBJECTS_PER_BUCKET_BITS = 18
_KEY_BITS = 63


@dataclass(kw_only=True)
class Facts:
    """The rows of MRREL that were kept."""

    by_subject: Buckets
    concept_bits: int
    """Bits of a key for each of subject and object; the relation has the bits between them."""
    relation_number: dict[str, int] = field(default_factory=dict)

    def pack(self, subjects: np.ndarray, relations: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """[N] rows and numbers -> [N] int64 keys, which sort like (subject, relation, object)."""
        subject_shift = _KEY_BITS - self.concept_bits
        return subjects.astype(np.int64) << subject_shift | relations.astype(np.int64) << self.concept_bits | objects

    def unpack(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The reverse of `pack`."""
        relations = keys >> self.concept_bits & (self.max_relations - 1)
        return keys >> (_KEY_BITS - self.concept_bits), relations, keys & ((1 << self.concept_bits) - 1)

    @property
    def max_relations(self) -> int:
        """How many relations a key has room for: 131,072 with the 4 million concepts of a full UMLS."""
        return 1 << (_KEY_BITS - 2 * self.concept_bits)


def read_facts(reader: Reader, file: RrfFile, folder: Path, cuis: pa.Array, *, suppress: str) -> Facts:
    """Read MRREL and put its facts aside by subject.

    Raises:
        UserError: there are more relations than a key has room for.
    """
    concepts = ConceptRows(cuis)
    by_subject = Buckets(folder, pa.schema([("key", pa.int64())]))
    facts = Facts(by_subject=by_subject, concept_bits=(len(cuis) - 1).bit_length())
    for batch in reader.batches(file, REL_COLUMNS):
        is_suppressed = np.asarray(pc.not_equal(batch["SUPPRESS"], suppress))
        batch.drop({SUPPRESSED: is_suppressed, EMPTY_RELA: batch.is_empty("RELA")}, still_needed=_FACT_COLUMNS)
        objects, subjects = concepts.rows(batch["CUI1"]), concepts.rows(batch["CUI2"])
        is_unknown = (objects < 0) | (subjects < 0)
        batch.drop({UNKNOWN_CUI: is_unknown, SELF_LOOP: objects == subjects}, still_needed=["RELA"])
        relations = _number_relations(facts, batch["RELA"], file)
        is_good = ~is_unknown & (objects != subjects)
        subjects, objects = subjects[is_good], objects[is_good]
        keys = facts.pack(subjects, relations, objects)
        buckets = subjects >> _SUBJECTS_PER_BUCKET_BITS
        by_subject.add(pa.record_batch({"key": keys}), pa.array(buckets))
        batch.report.kept += len(keys)
    return facts


def write_triples(facts: Facts, path: Path, cuis: pa.Array, report: FileReport, executor: Executor) -> dict[str, int]:
    """Sort the facts bucket by bucket, drop repeats, and write the triples table.

    Args:
        facts: by subject; emptied.
        path: file to write.
        cuis: the CUIs of all concepts, sorted.
        report: of MRREL; repeats are counted there, and what is kept.
        executor: threads that sort.

    Returns:
        The counts "triples", "relations" and "concepts_in_triples".
    """
    relations = sorted(facts.relation_number)
    sorted_number = np.empty(len(relations), np.int64)
    sorted_number[[facts.relation_number[name] for name in relations]] = np.arange(len(relations))
    relation_names = pa.array(relations, pa.string())
    is_in_triples = np.zeros(len(cuis), bool)

    def sort_triples(rows: pa.RecordBatch) -> pa.RecordBatch:
        subjects, numbers, objects = facts.unpack(rows["key"].to_numpy())
        keys = np.unique(facts.pack(subjects, sorted_number[numbers], objects))
        subjects, numbers, objects = facts.unpack(keys)
        is_in_triples[subjects] = is_in_triples[objects] = True
        columns = [cuis.take(pa.array(subjects)), relation_names.take(pa.array(numbers)), cuis.take(pa.array(objects))]
        return pa.RecordBatch.from_arrays(columns, schema=knowledge_base.TRIPLES_SCHEMA)

    buckets = facts.by_subject
    with TableFile(path, knowledge_base.TRIPLES_SCHEMA) as table:
        for triples in in_order(executor, sort_triples, map(buckets.take, buckets)):
            table.write(triples)
    report.dropped[DUPLICATE] += report.kept - table.num_rows
    report.kept = table.num_rows
    return {
        "triples": table.num_rows,
        "relations": len(relations),
        "concepts_in_triples": int(np.count_nonzero(is_in_triples)),
    }


def _number_relations(facts: Facts, column: pa.Array, file: RrfFile) -> np.ndarray:
    """[N] names of relations -> [N] running numbers, in the order in which the names were first seen."""
    encoded = column.dictionary_encode()
    known = facts.relation_number
    numbers = [known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()]
    if len(known) > facts.max_relations:
        raise UserError(
            file.path,
            got=f"more than {facts.max_relations:,} relations",
            expected="a UMLS release, which has about 1,000 (RELA)",
            mend="check the columns of the file",
        )
    return np.array(numbers, np.int64)[encoded.indices]
