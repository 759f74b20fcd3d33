"""A made-up UMLS META folder of any size, for measurements: MRCONSO, MRREL, MRSTY, MRDEF and MRFILES.

    python -m tests.benchmarks.synthetic_umls OUT --scale 0.0625

No row is licensed content: names are words put together from Greek and Latin morphemes, sources and relations are made
up. What is like a real release is the shape of it, as far as it decides how long reading takes and how much memory:

- 4.3 million concepts, 16 million rows of MRCONSO, 50 million of MRREL at `scale=1`; other scales are a part of this
  with as many rows per concept. CUIs ascend, with gaps; MRCONSO is sorted by CUI and MRREL by CUI1.
- MRCONSO: some 3.7 atoms per concept, few concepts with very many (log-normal); 25 languages, about 66% English;
  1% of the concepts have no English name; about 15% of the rows are suppressed; about 11% repeat a name that the
  concept already has from another source; 2% of the English names are acronyms that many concepts share.
- English names have 1 to 12 words drawn by Zipf's law from 60,000, about 35 letters in the mean, some with commas,
  brackets, strengths, numbers or in capitals. Other languages use their own letters (2 or 3 bytes each).
- MRREL: each relation stands there in both directions; about half of the rows have no RELA, 14% are suppressed, 6% lead
  from a concept to itself, one row in five repeats a fact that another source states; some 1,000 relations by Zipf.
- MRSTY: 1.3 rows per concept of 127 types. MRDEF: 0.1 rows per concept, 12 to 60 words, one in seven not English.

The rows depend on `scale` and `seed` only. Everything is made in slices, so memory does not grow with the scale, but
for MRREL, whose random pairing takes 20 bytes per row for a moment (1 GB at full size).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.umls.rrf import LAYOUT_FILE, STANDARD_COLUMNS

FULL_CONCEPTS = 4_300_000
ATOMS_PER_CONCEPT = 3.72
RELATION_ROWS_PER_CONCEPT = 50 / 4.3
SEMANTIC_TYPES = 127
_CONCEPTS_PER_SLICE = 50_000
_RELATIONS_PER_SLICE = 400_000

_PREFIXES = "a anti auto bi brady cardio chloro cyclo de di dys endo epi ex fluoro hyper hypo immuno inter intra iso"
_PREFIXES += " macro meta methyl micro mono multi neo neuro non nor oligo oxy para peri poly post pre pro pseudo retro"
_PREFIXES += " semi sub super tachy tetra trans tri ultra un uni vaso"
_ROOTS = "aden arthr blast bronch carcin cephal chondr col crani cyt derm enter erythr fibr gastr gloss glyc hem hepat"
_ROOTS += " hist kerat laryng leuk lip lith lymph mel men morph my nephr oste ot ovar pancreat path pharyng phleb pneum"
_ROOTS += " proct psych pyel rhin sacr sclera splen spondyl stern thorac thym thyr trache ur vas ventr zyg"
_ENDINGS = "al algia ase ation cele cyte ectomy ectasis emia ergic esis gram ia iasis ic ide in ine itis ium ization"
_ENDINGS += (
    " lysis malacia megaly oid ol oma one opathy osis ostomy otomy ous pathy penia plasty rrhea sis tic um ure us"
)
_SMALL_WORDS = ("of", "of the", "with", "due to", "in", "and", "by", "for", "on", "without")
_STRENGTHS = ("10 MG", "250 MG", "0.5 ML", "20 UNT/ML", "1.25 MG/ML", "5 %", "type 2", "grade III", "stage IV", "#3")
_ENGLISH_TAILS = (
    " (disorder)",
    " (procedure)",
    " (finding)",
    " Oral Tablet",
    " [Mass/volume] in Serum",
    ", NOS",
    " - 1",
)
_CAPITALS, _COMMA = 0.12, 0.1

# LAT, share among the rows that are not English, first letter of its alphabet and number of its letters.
_LATIN = (ord("a"), 26)
_LANGUAGES = (
    *(("SPA", 30, _LATIN), ("POR", 10, _LATIN), ("FRE", 9, _LATIN), ("JPN", 8, (0x30A2, 40)), ("RUS", 7, (0x430, 32))),
    *(("GER", 6, _LATIN), ("ITA", 6, _LATIN), ("DUT", 6, _LATIN), ("CZE", 5, _LATIN), ("KOR", 4, (0xAC00, 500))),
    *(("HUN", 2, _LATIN), ("CHI", 2, (0x4E00, 500)), ("POL", 2, _LATIN), ("NOR", 1, _LATIN), ("SWE", 1, _LATIN)),
    *(("TUR", 0.5, _LATIN), ("GRE", 0.5, (0x3B1, 24)), ("EST", 0.5, _LATIN), ("FIN", 0.5, _LATIN)),
    *(("SCR", 0.3, _LATIN), ("LAV", 0.2, _LATIN), ("DAN", 0.1, _LATIN), ("BAQ", 0.1, _LATIN)),
    ("HEB", 0.1, (0x5D0, 27)),
)
_ENGLISH_SOURCES = tuple(f"MADEUP{number}_US" for number in range(60))
_TERM_TYPES = ("PT", "SY", "PN", "FN", "LLT", "CE", "AB", "ET", "IN", "BN", "SCD")
_RELATION_STEMS = 500
_REL_WITHOUT_RELA = ("PAR", "CHD", "SIB", "RB", "RN", "RO", "RQ", "SY")


class _Table:
    """One RRF file while it is written: rows are whole columns, joined with "|"."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name, self.rows = name, 0
        self.columns = STANDARD_COLUMNS[name].split(",")
        self._file = file

    def write(self, **columns: pa.Array | str) -> None:
        """Append rows; a column that is not given is empty, a str is the same in all rows."""
        values = [columns.get(column, "") for column in self.columns]
        fields = [pa.scalar(value) if isinstance(value, str) else value for value in values]
        rows = pc.binary_join_element_wise(*fields, pa.scalar("\n"), "|")
        self._file.write(memoryview(rows.buffers()[2])[: rows.offset + _text_bytes(rows)])
        self.rows += len(rows)

    def layout(self) -> str:
        """The line of MRFILES.RRF."""
        columns = ",".join(self.columns)
        return f"{self.name}|Made up|{columns}|{len(self.columns)}|{self.rows}|{self._file.tell()}|\n"


def generate_umls(folder: Path, *, scale: float = 1.0, seed: int = 0) -> dict[str, int]:
    """Write a META folder; see the module's text for its shape.

    Args:
        folder: a folder that does not exist yet.
        scale: part of the full size, 1 is 4.3 million concepts.
        seed: of all random choices.

    Returns:
        Number of rows of each table.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    numbers = 4 + np.cumsum(random.choice([1, 2], p=[0.65, 0.35], size=max(round(FULL_CONCEPTS * scale), 10)))
    words, foreign_words = _english_words(random), _foreign_words(random)
    layout, rows = [], {}
    writers: dict[str, Callable[[_Table], None]] = {
        "MRCONSO.RRF": lambda table: _write_names(table, numbers, words, foreign_words, seed),
        "MRREL.RRF": lambda table: _write_relations(table, numbers, seed),
        "MRSTY.RRF": lambda table: _write_semantic_types(table, numbers, words, seed),
        "MRDEF.RRF": lambda table: _write_definitions(table, numbers, words, seed),
    }
    for name, write in writers.items():
        with open(folder / name, "wb") as file:
            table = _Table(name, file)
            write(table)
            layout.append(table.layout())
        rows[name] = table.rows
    (folder / LAYOUT_FILE).write_text("".join(layout), encoding="utf-8")
    return rows


def _write_names(table: _Table, numbers: np.ndarray, words: pa.Array, foreign_words: pa.Array, seed: int) -> None:
    languages = pa.array(["ENG", *(language[0] for language in _LANGUAGES)])
    shares = np.array([language[1] for language in _LANGUAGES], float)
    acronyms = pa.array([f"{a}{b}{c}" for a in "ABCDEFGHIJKLMNOPRST" for b in "ACDEGHILMNOPRST" for c in "ABCDEFGPST"])
    english_sources = pa.array(_ENGLISH_SOURCES)
    foreign_sources = pa.array([f"MADEUP{language[0]}" for language in _LANGUAGES])
    for random, concepts in _slices(numbers, _CONCEPTS_PER_SLICE, seed, 1):
        atoms = 1 + np.minimum(random.lognormal(0.72, 0.95, len(concepts)), 400).astype(np.int64)
        concept = np.repeat(np.arange(len(concepts)), atoms)
        count = len(concept)
        is_first = np.concatenate([[True], concept[1:] != concept[:-1]])
        is_foreign = random.random(count) < np.where(is_first, 0.03, 0.465)
        language = np.where(is_foreign, 1 + random.choice(len(shares), count, p=shares / shares.sum()), 0)
        # A concept's rows stand in the order of their languages, as in a release.
        order = np.lexsort([language, concept])
        language, is_foreign = language[order], language[order] > 0
        head = random.integers(1 << 40, size=len(concepts))[concept]
        name = _english_names(random, words, head)
        name = pc.if_else(is_foreign, _foreign_names(random, foreign_words, language), name)
        is_acronym = ~is_foreign & (random.random(count) < 0.02)
        name = pc.if_else(is_acronym, acronyms.take(_zipf(random, len(acronyms), count)), name)
        # The name before it, if that is of the same concept and language.
        same_group = np.concatenate([[False], (concept[1:] == concept[:-1]) & (language[1:] == language[:-1])])
        repeats = same_group & (random.random(count) < 0.25)
        name = name.take(pa.array(np.maximum.accumulate(np.where(repeats, 0, np.arange(count)))))
        source = pc.if_else(
            is_foreign,
            foreign_sources.take(pa.array(np.maximum(language - 1, 0))),
            english_sources.take(_zipf(random, len(english_sources), count)),
        )
        atom = table.rows + np.arange(count)
        table.write(
            CUI=_coded("C", concepts, 7).take(pa.array(concept)),
            LAT=languages.take(pa.array(language)),
            TS=_choose(random, count, {"S": 0.6, "P": 0.4}),
            LUI=_coded("L", 1_000_000 + atom * 3 // 4, 7),
            STT=_choose(random, count, {"PF": 0.85, "VC": 0.08, "VO": 0.05, "VCW": 0.02}),
            SUI=_coded("S", 10_000_000 + atom, 8),
            ISPREF=_choose(random, count, {"Y": 0.7, "N": 0.3}),
            AUI=_coded("A", 10_000_000 + random.integers(20_000_000, size=count), 8),
            SCUI=_or_empty(random, 0.6, _coded("", random.integers(10**8, size=count), 8)),
            SAB=source,
            TTY=pa.array(_TERM_TYPES).take(_zipf(random, len(_TERM_TYPES), count)),
            CODE=_coded("", random.integers(10**7, size=count), 7),
            STR=name,
            SRL=_choose(random, count, {"0": 0.6, "9": 0.2, "3": 0.2}),
            SUPPRESS=_choose(random, count, {"N": 0.85, "O": 0.08, "Y": 0.05, "E": 0.02}),
            CVF=_choose(random, count, {"": 0.7, "256": 0.2, "4352": 0.1}),
        )


def _write_relations(table: _Table, numbers: np.ndarray, seed: int) -> None:
    random = np.random.default_rng([seed, 2])
    owner, partner = _random_pairs(random, len(numbers))
    roots = _ROOTS.split()
    stems = [f"{roots[number % len(roots)]}_{roots[number // len(roots)]}" for number in range(_RELATION_STEMS)]
    relations = pa.array([relation for stem in stems for relation in (f"has_{stem}", f"is_{stem}_of")])
    for random, ends in _slices(np.arange(len(owner)), _RELATIONS_PER_SLICE, seed, 3):
        # What both directions of a relation have in common hangs on the smaller of its two ends.
        pair = np.minimum(ends, partner[ends])
        kind, relation, copies, to_itself, suppressed = _uniform(pair, 5)
        repeats = np.where(copies < 0.2, 2, 1) + (copies < 0.025)
        row = np.repeat(np.arange(len(ends)), repeats)
        subject = owner[np.where(to_itself < 0.06, ends, partner[ends])][row]
        number = 2 * ((_RELATION_STEMS**relation).astype(np.int64) - 1) + (ends == pair)
        rela = relations.take(pa.array(number[row]))
        count, has_rela = len(row), kind[row] < 0.48
        other_rel = pa.array(_REL_WITHOUT_RELA).take(pa.array(random.integers(len(_REL_WITHOUT_RELA), size=count)))
        source = pa.array(_ENGLISH_SOURCES).take(_zipf(random, len(_ENGLISH_SOURCES), count))
        table.write(
            CUI1=_coded("C", numbers[owner[ends]], 7).take(pa.array(row)),
            AUI1=_coded("A", 10_000_000 + random.integers(20_000_000, size=count), 8),
            STYPE1=_choose(random, count, {"SCUI": 0.5, "AUI": 0.3, "CUI": 0.2}),
            REL=pc.if_else(has_rela, "RO", other_rel),
            CUI2=_coded("C", numbers[subject], 7),
            AUI2=_coded("A", 10_000_000 + random.integers(20_000_000, size=count), 8),
            STYPE2=_choose(random, count, {"SCUI": 0.5, "AUI": 0.3, "CUI": 0.2}),
            RELA=pc.if_else(has_rela, rela, ""),
            RUI=_coded("R", 100_000_000 + table.rows + np.arange(count), 9),
            SRUI=_or_empty(random, 0.6, _coded("", random.integers(10**10, size=count), 10)),
            SAB=source,
            SL=source,
            DIR=_choose(random, count, {"": 0.6, "Y": 0.2, "N": 0.2}),
            SUPPRESS=pc.if_else(pa.array(suppressed[row] < 0.14), "O", "N"),
        )


def _write_semantic_types(table: _Table, numbers: np.ndarray, words: pa.Array, seed: int) -> None:
    names = pc.binary_join_element_wise(words[:SEMANTIC_TYPES], words[1000 : 1000 + SEMANTIC_TYPES], " or ")
    trees = pa.array([f"A1.{number // 10}.{number % 10}" for number in range(SEMANTIC_TYPES)])
    for random, concepts in _slices(numbers, _CONCEPTS_PER_SLICE, seed, 4):
        row = np.repeat(np.arange(len(concepts)), random.choice([1, 2, 3], p=[0.73, 0.24, 0.03], size=len(concepts)))
        # Types of one concept differ: they are a step apart.
        same = np.concatenate([[False], row[1:] == row[:-1]])
        types = pa.array((np.asarray(_zipf(random, SEMANTIC_TYPES, len(concepts)))[row] + same) % SEMANTIC_TYPES)
        table.write(
            CUI=_coded("C", concepts[row], 7),
            TUI=_coded("T", 1 + np.asarray(types), 3),
            STN=trees.take(types),
            STY=names.take(types),
            ATUI=_coded("AT", 10_000_000 + table.rows + np.arange(len(row)), 8),
            CVF=_choose(random, len(row), {"": 0.7, "256": 0.3}),
        )


def _write_definitions(table: _Table, numbers: np.ndarray, words: pa.Array, seed: int) -> None:
    sources = {"MSH": 0.25, "NCI": 0.4, "MADEUP1_US": 0.1, "MADEUP7_US": 0.1, "MADEUPSPA": 0.1, "MADEUPCZE": 0.05}
    for random, concepts in _slices(numbers, _CONCEPTS_PER_SLICE, seed, 5):
        row = np.flatnonzero(random.random(len(concepts)) < 0.083)
        row = np.repeat(row, random.choice([1, 2], p=[0.8, 0.2], size=len(row)))
        lengths = random.integers(12, 61, len(row))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        texts = pa.ListArray.from_arrays(offsets, words.take(_zipf(random, len(words), int(lengths.sum()))))
        count = len(row)
        table.write(
            CUI=_coded("C", concepts[row], 7),
            AUI=_coded("A", 10_000_000 + random.integers(20_000_000, size=count), 8),
            ATUI=_coded("AT", 50_000_000 + table.rows + np.arange(count), 8),
            SAB=_choose(random, count, sources),
            DEF=pc.binary_join(texts, " "),
            SUPPRESS=_choose(random, count, {"N": 0.95, "O": 0.05}),
        )


def _slices(values: np.ndarray, size: int, seed: int, table: int) -> Iterator[tuple[np.random.Generator, np.ndarray]]:
    """Slices of an array, each with random numbers of its own."""
    for start in range(0, len(values), size):
        yield np.random.default_rng([seed, table, start]), values[start : start + size]


def _random_pairs(random: np.random.Generator, concepts: int) -> tuple[np.ndarray, np.ndarray]:
    """The ends of all relations: owner [M], the concept of each end, ascending; partner [M], its other end.

    Concepts have very different numbers of relations (log-normal). Each end is one row of MRREL (repeats apart), so
    that a relation is seen from both its concepts.
    """
    mean_repeats = 1.225
    mean = RELATION_ROWS_PER_CONCEPT / mean_repeats
    degrees = random.lognormal(np.log(mean) - 0.5, 1.0, concepts).astype(np.int32) + (random.random(concepts) < 0.5)
    owner = np.repeat(np.arange(concepts, dtype=np.int32), degrees)
    ends = random.permutation(len(owner) // 2 * 2).astype(np.int32)
    partner = np.empty_like(ends)
    partner[ends[0::2]], partner[ends[1::2]] = ends[1::2], ends[0::2]
    return owner[: len(ends)], partner


def _uniform(values: np.ndarray, count: int) -> list[np.ndarray]:
    """For each value `count` numbers in [0, 1) that depend on nothing but the value (SplitMix64)."""
    uniform = []
    state = values.astype(np.uint64)
    for turn in range(1, count + 1):
        mixed = (state + np.uint64(turn << 40)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        uniform.append(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / (1 << 53))
    return uniform


def _zipf(random: np.random.Generator, count: int, size: int) -> pa.Array:
    """[size] numbers below `count`; number n is drawn in proportion to 1 / (n + 1), roughly."""
    return pa.array((float(count + 1) ** random.random(size)).astype(np.int64) - 1)


def _choose(random: np.random.Generator, size: int, shares: dict[str, float]) -> pa.Array:
    limits = np.cumsum(list(shares.values()))
    return pa.array(list(shares)).take(pa.array(np.searchsorted(limits[:-1], random.random(size), side="right")))


def _or_empty(random: np.random.Generator, share: float, values: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(random.random(len(values)) < share), values, "")


def _coded(prefix: str, numbers: np.ndarray, digits: int) -> pa.Array:
    """Identifiers such as C0000005, always of the same width."""
    width = len(prefix) + digits
    text = np.empty((len(numbers), width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    rest = np.asarray(numbers, np.int64)
    for column in range(width - 1, len(prefix) - 1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, column] = digit + ord("0")
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * width
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text))


def _english_words(random: np.random.Generator) -> pa.Array:
    """60,000 made-up words, the most frequent first; frequent words are short."""
    prefixes, roots, endings = ["", *_PREFIXES.split()], _ROOTS.split(), _ENDINGS.split()
    words = sorted({prefix + root + ending for prefix in prefixes for root in roots for ending in endings})
    order = random.permutation(len(words))[:60_000]
    lengths = np.array([len(words[place]) for place in order]) + random.normal(0, 4, len(order))
    return pa.array([words[place] for place in order[np.argsort(lengths)]])


def _foreign_words(random: np.random.Generator) -> pa.Array:
    """2,000 words of 2 to 11 letters of each language, one language after the other."""
    words = []
    for _, _, (first, letters) in _LANGUAGES:
        for length in random.integers(2, 12, 2000):
            words.append("".join(map(chr, first + random.integers(letters, size=length))))
    return pa.array(words)


def _english_names(random: np.random.Generator, words: pa.Array, head: np.ndarray) -> pa.Array:
    """[N] names; names with the same `head` (a number per concept) share their first words as often as not."""
    count, missing = len(head), pa.scalar(None, pa.string())
    length = np.minimum(1 + random.lognormal(0.72, 0.62, count), 12).astype(np.int64)
    columns: list[pa.Array] = []
    for place in range(int(length.max())):
        own = np.asarray(_zipf(random, len(words), count))
        if place < 2:
            shared = (float(len(words) + 1) ** _uniform(head + place, 1)[0]).astype(np.int64) - 1
            own = np.where(random.random(count) < 0.6, shared, own)
        word = words.take(pa.array(own))
        if place in (1, 3, 5):
            small = pa.array(_SMALL_WORDS).take(_zipf(random, len(_SMALL_WORDS), count))
            with_small = pc.binary_join_element_wise(small, word, " ")
            word = pc.if_else(pa.array(random.random(count) < 0.2), with_small, word)
        columns.append(pc.if_else(pa.array(place < length), word, missing))
    strength = pa.array(_STRENGTHS).take(pa.array(random.integers(len(_STRENGTHS), size=count)))
    columns.append(pc.if_else(pa.array(random.random(count) < 0.1), strength, missing))
    # Most names of one word are those of compounds and genes, and no two concepts have the same.
    is_compound = (length == 1) & (random.random(count) < 0.7)
    columns.append(pc.if_else(pa.array(is_compound), _coded("", random.integers(10**5, size=count), 5), missing))
    name = pc.binary_join_element_wise(*columns, " ", null_handling="skip")
    inverted = pc.binary_join_element_wise(columns[1], columns[0], ", ")
    name = pc.coalesce(pc.if_else(pa.array(random.random(count) < _COMMA), inverted, name), name)
    tail = pa.array(_ENGLISH_TAILS).take(_zipf(random, len(_ENGLISH_TAILS), count))
    name = pc.binary_join_element_wise(name, pc.if_else(pa.array(random.random(count) < 0.22), tail, ""), "")
    case = random.random(count)
    name = pc.if_else(pa.array(case < _CAPITALS), pc.ascii_upper(name), name)
    return pc.if_else(pa.array(case > 0.4), pc.ascii_capitalize(name), name)


def _foreign_names(random: np.random.Generator, words: pa.Array, language: np.ndarray) -> pa.Array:
    """[N] names of one to four words of each row's language (from 1; rows of language 0 get any word)."""
    count = len(language)
    length = random.integers(1, 5, count)
    first = np.maximum(language - 1, 0) * 2000
    columns = []
    for place in range(4):
        word = words.take(pa.array(first + random.integers(2000, size=count)))
        columns.append(pc.if_else(pa.array(place < length), word, pa.scalar(None, pa.string())))
    return pc.binary_join_element_wise(*columns, " ", null_handling="skip")


def _text_bytes(strings: pa.Array) -> int:
    """Bytes of the text of a string array that starts at offset 0."""
    return int(np.frombuffer(strings.buffers()[1], np.int32, len(strings) + 1)[-1])


def main() -> None:
    """Write a folder and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--scale", type=float, default=1 / 64, help="part of the full size (default: 1/64)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    for name, rows in generate_umls(arguments.out, scale=arguments.scale, seed=arguments.seed).items():
        print(f"{rows:>12,} rows, {(arguments.out / name).stat().st_size / 1e6:>9,.1f} MB  {name}")
    print(f"{time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
