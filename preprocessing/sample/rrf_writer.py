"""Write the mini UMLS as RRF files, with the kinds of rows that a knowledge base build must drop."""

from __future__ import annotations

from pathlib import Path

from preprocessing.sample.concepts import Concept, all_concepts, concepts_by_name
from preprocessing.sample.relations import Fact, all_facts
from preprocessing.umls.rrf import LAYOUT_FILE, STANDARD_COLUMNS

SOURCE = "SMP"
SECOND_SOURCE = "SMP2"
SPANISH_SOURCE = "SMPSPA"
UNKNOWN_CUI = "C9999999"
_DUPLICATE_EVERY = 40
_FACTS_PER_DEFINITION = 2

# Names in other languages, by English name: (LAT, name).
FOREIGN_NAMES = {
    "asthma": (("SPA", "asma bronquial"), ("GER", "Bronchialasthma")),
    "liver": (("SPA", "hígado"), ("GER", "Leber")),
    "heart": (("SPA", "corazón"), ("FRE", "cœur")),
    "fever": (("GER", "Fieber"), ("FRE", "fièvre")),
    "stroke": (("SPA", "ictus"), ("GER", "Schlaganfall")),
}
# Names that a source has given up (SUPPRESS = O), by the name that is still in use.
OBSOLETE_NAMES = {
    "asthma": "asthma NOS",
    "tuberculosis": "phthisis (obsolete term)",
    "dermatitis": "dermatitis NOS",
    "insulin": "insulin preparation (old name)",
}
# Rows of MRREL that are no facts of the knowledge base, as "CUI2 RELA CUI1": (name, RELA, name, SUPPRESS).
USELESS_RELATIONS = (
    ("asthma", "", "lung disease", "N"),
    ("gout", "", "arthritis", "N"),
    ("malaria", "", "infectious disease", "N"),
    ("aspirin", "may_treat", "aspirin", "N"),
    ("fever", "isa", "fever", "N"),
    ("aspirin", "may_treat", "measles", "O"),
    ("insulin", "may_prevent", "influenza", "Y"),
)

_REL_OF_RELA = {"isa": "CHD", "inverse_isa": "PAR"}


def write_umls(folder: Path) -> None:
    """Write MRCONSO, MRREL, MRSTY, MRDEF and MRFILES. The content does not depend on any random choice."""
    folder.mkdir(parents=True)
    tables = {
        "MRCONSO.RRF": _name_rows(),
        "MRREL.RRF": _relation_rows(),
        "MRSTY.RRF": _semantic_type_rows(),
        "MRDEF.RRF": _definition_rows(),
    }
    layout = []
    for name, rows in tables.items():
        columns = STANDARD_COLUMNS[name].split(",")
        text = "".join("".join(f"{row.get(column, '')}|" for column in columns) + "\n" for row in rows)
        (folder / name).write_bytes(text.encode("utf-8"))
        description = f"{name}|Table of the sample|{','.join(columns)}|{len(columns)}|{len(rows)}|{len(text.encode())}|"
        layout.append(description + "\n")
    (folder / LAYOUT_FILE).write_bytes("".join(layout).encode("utf-8"))


def _name_rows() -> list[dict[str, str]]:
    rows = []
    for number, concept in enumerate(all_concepts()):
        for index, name in enumerate(concept.names):
            rows.append(_name_row(concept, name, is_preferred=index == 0))
        # UMLS has a row for each source that uses a name.
        if number % _DUPLICATE_EVERY == 0:
            rows.append(_name_row(concept, concept.preferred_name, is_preferred=False, source=SECOND_SOURCE))
        for language, name in FOREIGN_NAMES.get(concept.preferred_name, ()):
            rows.append(_name_row(concept, name, is_preferred=True, source=f"SMP{language}", language=language))
        if concept.preferred_name in OBSOLETE_NAMES:
            obsolete = OBSOLETE_NAMES[concept.preferred_name]
            rows.append(_name_row(concept, obsolete, is_preferred=False, suppress="O"))
    for number, row in enumerate(rows, start=1):
        row.update(LUI=f"L{number:07}", SUI=f"S{number:07}", AUI=f"A{number:07}")
    return rows


def _name_row(
    concept: Concept,
    name: str,
    *,
    is_preferred: bool,
    source: str = SOURCE,
    language: str = "ENG",
    suppress: str = "N",
) -> dict[str, str]:
    return {
        "CUI": concept.cui,
        "LAT": language,
        "TS": "P" if is_preferred else "S",
        "STT": "PF",
        "ISPREF": "Y" if source != SECOND_SOURCE else "N",
        "SAB": source,
        "TTY": "PT" if is_preferred else "SY",
        "CODE": concept.cui,
        "STR": name,
        "SRL": "0",
        "SUPPRESS": suppress,
    }


def _relation_rows() -> list[dict[str, str]]:
    """Each fact in both directions, then the rows of no use. A row reads "CUI2 RELA CUI1"."""
    by_name = concepts_by_name()
    rows = []
    for number, fact in enumerate(all_facts()):
        subject, object_ = fact.subject.cui, fact.object.cui
        rows.append(_relation_row(subject, fact.relation.name, object_))
        rows.append(_relation_row(object_, fact.relation.inverse, subject))
        if number % _DUPLICATE_EVERY == 0:
            rows.append(_relation_row(subject, fact.relation.name, object_, source=SECOND_SOURCE))
    for subject, rela, object_, suppress in USELESS_RELATIONS:
        rows.append(_relation_row(by_name[subject].cui, rela, by_name[object_].cui, suppress=suppress))
    rows.append(_relation_row(UNKNOWN_CUI, "may_treat", by_name["asthma"].cui))
    rows.append(_relation_row(by_name["asthma"].cui, "isa", UNKNOWN_CUI))
    for number, row in enumerate(rows, start=1):
        row["RUI"] = f"R{number:08}"
    return rows


def _relation_row(
    subject: str, rela: str, object_: str, *, source: str = SOURCE, suppress: str = "N"
) -> dict[str, str]:
    return {
        "CUI1": object_,
        "STYPE1": "CUI",
        "REL": _REL_OF_RELA.get(rela, "RO"),
        "CUI2": subject,
        "STYPE2": "CUI",
        "RELA": rela,
        "SAB": source,
        "SL": source,
        "SUPPRESS": suppress,
    }


def _semantic_type_rows() -> list[dict[str, str]]:
    rows = [
        {"CUI": concept.cui, "TUI": concept.tui, "STY": concept.semantic_type, "ATUI": f"AT{number:08}"}
        for number, concept in enumerate(all_concepts(), start=1)
    ]
    # Insulin is a drug and a protein: concepts may have several semantic types.
    protein = next(concept for concept in all_concepts() if concept.tui == "T116")
    insulin = concepts_by_name()["insulin"].cui
    rows.append({"CUI": insulin, "TUI": protein.tui, "STY": protein.semantic_type, "ATUI": f"AT{len(rows) + 1:08}"})
    rows.append({"CUI": UNKNOWN_CUI, "TUI": "T047", "STY": "Disease or Syndrome", "ATUI": f"AT{len(rows) + 1:08}"})
    return rows


def _definition_rows() -> list[dict[str, str]]:
    """A definition, made of facts, for each concept that is the subject of some."""
    facts_of: dict[Concept, list[Fact]] = {}
    for fact in all_facts():
        facts_of.setdefault(fact.subject, []).append(fact)
    rows = []
    for concept in sorted(facts_of, key=lambda concept: concept.cui):
        facts = facts_of[concept][:_FACTS_PER_DEFINITION]
        clauses = " and ".join(f"that {fact.relation.phrase} {fact.object.preferred_name}" for fact in facts)
        rows.append(_definition_row(concept, f"{concept.semantic_type} {clauses}."))
    asthma = concepts_by_name()["asthma"]
    rows.append(_definition_row(asthma, "Enfermedad de los bronquios.", source=SPANISH_SOURCE))
    rows.append(_definition_row(asthma, "A withdrawn definition.", suppress="O"))
    for number, row in enumerate(rows, start=1):
        row["ATUI"] = f"AT{number:08}"
    return rows


def _definition_row(concept: Concept, text: str, *, source: str = SOURCE, suppress: str = "N") -> dict[str, str]:
    return {"CUI": concept.cui, "SAB": source, "DEF": text, "SUPPRESS": suppress}
