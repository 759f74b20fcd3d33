"""Short made-up abstracts, each planned around one fact of the mini UMLS.

Names of a concept vary inside an abstract, abbreviations are introduced in brackets, and the facts around a concept
are the ones that the knowledge base has, so a model can learn to tell entities from their context.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from preprocessing.sample import templates
from preprocessing.sample.concepts import AMBIGUOUS_NAMES, Concept
from preprocessing.sample.passage import Passage, fill, join
from preprocessing.sample.relations import Fact, all_facts, facts_about

FIRST_PMID = 90_000_001
_MAX_RELATED_FACTS = 3
_STRUCTURED_SHARE = 0.4
_INTRODUCE_ABBREVIATION = 0.6
_KEEP_NAME = 0.6
_NUMBERS = range(4, 97)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of an abstract; an unstructured abstract is one section without a label."""

    label: str
    passage: Passage

    @property
    def labelled(self) -> Passage:
        """The section as a plain-text reader prints it: "RESULTS: We found ..."."""
        return join([Passage(text=f"{self.label}:"), self.passage]) if self.label else self.passage


@dataclass(frozen=True, kw_only=True)
class Abstract:
    """One article of the mini PubMed."""

    pmid: str
    title: Passage
    sections: tuple[Section, ...]

    @property
    def abstract(self) -> Passage:
        """The sections, with their labels, joined by one space."""
        return join(section.labelled for section in self.sections)

    @property
    def document(self) -> Passage:
        """Title and abstract joined by one space; gold mentions count characters in this text."""
        return join([self.title, self.abstract])


def make_abstracts(count: int, seed: int) -> list[Abstract]:
    """Make `count` abstracts. The first one holds the example of the paper's Figure 1.

    Each abstract draws from a generator of its own, so the first n do not depend on how many follow.
    """
    facts = list(all_facts())
    random.Random(seed).shuffle(facts)
    abstracts = [_figure_1_abstract()]
    for number in range(1, count):
        rng = random.Random(f"{seed}/{number}")
        abstracts.append(_make_abstract(str(FIRST_PMID + number), facts[number % len(facts)], rng))
    return abstracts[:count]


class _Writer:
    """Fills templates for one abstract and remembers which names it has used."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.last_name: dict[str, str] = {}

    def write(self, choices: tuple[str, ...], fact: Fact, *, in_title: bool = False) -> Passage:
        """Fill one of the templates with the fact's concepts."""

        def name_slot(slot: str) -> list[str | tuple[Concept, str]]:
            if slot == "number":
                return [str(self.rng.choice(_NUMBERS))]
            return self._name(fact.subject if slot == "subject" else fact.object, in_title=in_title)

        return fill(self.rng.choice(choices), name_slot)

    def _name(self, concept: Concept, *, in_title: bool) -> list[str | tuple[Concept, str]]:
        names = [name for name in concept.names if name not in AMBIGUOUS_NAMES]
        # Common names come first in the tables and are drawn more often.
        name = self.rng.choices(names, weights=range(len(names), 0, -1))[0]
        if in_title:
            return [(concept, name)]
        last = self.last_name.get(concept.cui)
        short = next((name for name in names if _is_abbreviation(name)), None)
        if last is None and short and short != names[0] and self.rng.random() < _INTRODUCE_ABBREVIATION:
            self.last_name[concept.cui] = short
            return [(concept, names[0]), " (", (concept, short), ")"]
        if last is not None and self.rng.random() < _KEEP_NAME:
            name = last
        self.last_name[concept.cui] = name
        return [(concept, name)]


def _make_abstract(pmid: str, fact: Fact, rng: random.Random) -> Abstract:
    writer = _Writer(rng)
    title = writer.write(templates.TITLES[fact.relation.name], fact, in_title=True)
    related = _related_facts(fact, rng)
    background = [writer.write(templates.SENTENCES[other.relation.name], other) for other in related[:1]]
    methods = [writer.write(templates.FILLERS, fact)]
    results = [writer.write(templates.SENTENCES[other.relation.name], other) for other in (fact, *related[1:])]
    conclusions = [writer.write(templates.CLOSINGS, fact)]
    parts = {"BACKGROUND": background, "METHODS": methods, "RESULTS": results, "CONCLUSIONS": conclusions}
    if rng.random() < _STRUCTURED_SHARE:
        sections = [Section(label=label, passage=join(sentences)) for label, sentences in parts.items() if sentences]
    else:
        sections = [Section(label="", passage=join(sentence for part in parts.values() for sentence in part))]
    return Abstract(pmid=pmid, title=title, sections=tuple(sections))


def _related_facts(fact: Fact, rng: random.Random) -> list[Fact]:
    """Up to three other facts about the two concepts."""
    related = dict.fromkeys([*facts_about(fact.subject), *facts_about(fact.object)])
    related.pop(fact)
    return rng.sample(list(related), min(rng.randint(1, _MAX_RELATED_FACTS), len(related)))


def _figure_1_abstract() -> Abstract:
    names = templates.FIGURE_1_NAMES
    fact = next(
        fact for fact in all_facts() if fact.relation.name == "may_prevent" and names["subject"] in fact.subject.names
    )
    concepts = {"subject": fact.subject, "object": fact.object}
    title, *sentences = [
        fill(template, lambda slot: [(concepts[slot], names[slot])])
        for template in (templates.FIGURE_1_TITLE, *templates.FIGURE_1_SENTENCES)
    ]
    return Abstract(pmid=str(FIRST_PMID), title=title, sections=(Section(label="", passage=join(sentences)),))


def _is_abbreviation(name: str) -> bool:
    """One word without small letters, such as COPD or T2DM."""
    return 2 <= len(name) <= 6 and " " not in name and name.isupper() and name[0].isalpha()
