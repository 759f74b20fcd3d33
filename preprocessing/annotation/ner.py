"""Finds the mentions in a text: any spaCy pipeline with an `ner`, or a dictionary of the knowledge base's names.

The text by which a mention is linked may differ from the mention: an abbreviation is linked by its long form, found by
scispaCy's detector (Schwartz & Hearst, 2003). The paper uses scispaCy for both (section 3.3).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spacy
from scispacy.abbreviation import AbbreviationDetector
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc, Span
from spacy.util import filter_spans

from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file, sha256_of_json

DICTIONARY = "dictionary"

# Spans are found by components that assign `doc.ents`, from vectors that one of these components makes; taggers,
# parsers and lemmatizers of a pipeline cost time and add nothing.
_VECTOR_FACTORIES = frozenset({"tok2vec", "transformer", "curated_transformer"})

_SCISPACY_RELEASE = "https://s3-us-west-2.amazonaws.com/ai2-s2-scispacy/releases/v0.5.4/{name}-0.5.4.tar.gz"
_MIN_DICTIONARY_CHARACTERS = 3
_DOCUMENTS_PER_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class NerLimits:
    """What one document may cost. PubMed's longest abstracts have some 10,000 characters and a few dozen brackets.

    Attributes:
        max_characters: longer texts are not searched (spaCy itself stops at 1,000,000).
        max_brackets: in texts with more opening brackets, abbreviations stay unresolved: the detector looks at every
            pair of an opening and a closing bracket.
    """

    max_characters: int = 100_000
    max_brackets: int = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundMention:
    """A mention that is not linked yet: characters [start, end) of the text, and the text to link it by."""

    start: int
    end: int
    link_text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundMentions:
    """What was found in one text.

    Attributes:
        mentions: sorted by start, without overlaps.
        abbreviations_skipped: true where the text has too many brackets to look for abbreviations.
    """

    mentions: tuple[FoundMention, ...]
    abbreviations_skipped: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NerFailure:
    """Why a text could not be searched: "text-too-long" or "ner-error"."""

    reason: str
    detail: str


class MentionFinder:
    """A spaCy pipeline that was cut down to what finding mentions needs.

    Args:
        nlp: a pipeline whose components set `doc.ents`, or a blank one together with `matcher`.
        matcher: finds the spans instead of `doc.ents`; overlapping ones are resolved longest first, then leftmost.
        limits: what one document may cost.
    """

    def __init__(self, nlp: Language, *, matcher: PhraseMatcher | None = None, limits: NerLimits | None = None) -> None:
        self._nlp, self._matcher, self._limits = nlp, matcher, limits or NerLimits()
        self._abbreviations = AbbreviationDetector(nlp)

    def find(self, texts: Sequence[str]) -> list[FoundMentions | NerFailure]:
        """Search each text; one that fails leaves the others untouched."""
        results: list[FoundMentions | NerFailure | None] = [self._check_length(text) for text in texts]
        places = [place for place, result in enumerate(results) if result is None]
        for start in range(0, len(places), _DOCUMENTS_PER_BATCH):
            batch = places[start : start + _DOCUMENTS_PER_BATCH]
            for place, result in zip(batch, self._find_batch([texts[place] for place in batch]), strict=True):
                results[place] = result
        return [result for result in results if result is not None]

    def _check_length(self, text: str) -> NerFailure | None:
        if len(text) <= self._limits.max_characters:
            return None
        detail = f"{len(text)} characters; at most {self._limits.max_characters} are searched"
        return NerFailure(reason="text-too-long", detail=detail)

    def _find_batch(self, texts: list[str]) -> list[FoundMentions | NerFailure]:
        # Without a memory zone spaCy keeps every string that it ever saw; a process that lives long would only grow.
        try:
            with self._nlp.memory_zone(), warnings.catch_warnings():
                # The detector's matcher is empty wherever a text has no abbreviation; spaCy would warn each time.
                warnings.filterwarnings("ignore", message=r"\[W036\]")
                return [self._read_doc(doc) for doc in self._nlp.pipe(texts, batch_size=len(texts))]
        except Exception as error:
            # A detector that was interrupted keeps the rules of that text: start with a fresh one.
            self._abbreviations = AbbreviationDetector(self._nlp)
            if len(texts) == 1:
                return [NerFailure(reason="ner-error", detail=f"{type(error).__name__}: {error}")]
        return [result for text in texts for result in self._find_batch([text])]

    def _read_doc(self, doc: Doc) -> FoundMentions:
        spans: Iterable[Span] = doc.ents
        if self._matcher is not None:
            spans = filter_spans(self._matcher(doc, as_spans=True))
        skipped = doc.text.count("(") > self._limits.max_brackets
        long_forms = {} if skipped else self._find_long_forms(doc)
        mentions = tuple(
            FoundMention(
                start=span.start_char,
                end=span.end_char,
                link_text=long_forms.get((span.start_char, span.end_char), span.text),
            )
            for span in spans
            if span.text.strip()
        )
        return FoundMentions(mentions=mentions, abbreviations_skipped=skipped)

    def _find_long_forms(self, doc: Doc) -> dict[tuple[int, int], str]:
        """Characters [start, end) of each abbreviation -> its long form."""
        found = [
            (short.start_char, short.end_char, short._.long_form.text)
            for short in self._abbreviations(doc)._.abbreviations
        ]
        # The detector returns sets; sorted, and the first kept, the result is the same in every process.
        return {(start, end): long_form for start, end, long_form in sorted(found, reverse=True)}


def load_finder(model: str, *, names: Iterable[str] = (), limits: NerLimits | None = None) -> MentionFinder:
    """Load a pipeline by name or folder, or build the dictionary.

    Args:
        model: an installed spaCy package, a pipeline's folder, or "dictionary".
        names: names of the knowledge base, used by the dictionary only.
        limits: what one document may cost.

    Raises:
        UserError: the pipeline is not there, cannot be loaded, or finds no entities.
    """
    if model == DICTIONARY:
        nlp = spacy.blank("en")
        return MentionFinder(nlp, matcher=build_matcher(nlp, names), limits=limits)
    try:
        nlp = spacy.load(model)
    except Exception as error:
        raise _cannot_load(model, error) from None
    nlp.select_pipes(enable=_needed_components(nlp, model))
    return MentionFinder(nlp, limits=limits)


def build_matcher(nlp: Language, names: Iterable[str]) -> PhraseMatcher:
    """A matcher of names regardless of case, token by token.

    Left out, because they would match everywhere: names shorter than 3 characters, names without a letter, and names
    that are an English function word ("all", "can", "was"; spaCy's list of stop words).
    """
    stop_words = nlp.Defaults.stop_words
    distinct = sorted({" ".join(name.lower().split()) for name in names})
    kept = [
        name
        for name in distinct
        if len(name) >= _MIN_DICTIONARY_CHARACTERS and name not in stop_words and any(map(str.isalpha, name))
    ]
    matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
    matcher.add("NAME", list(nlp.tokenizer.pipe(kept)))
    return matcher


def describe_model(model: str) -> dict[str, Any]:
    """What identifies a pipeline in a manifest: its name, version, and the SHA-256 of all its files.

    Raises:
        UserError: there is no such pipeline.
    """
    if model == DICTIONARY:
        return {"name": DICTIONARY, "version": spacy.__version__, "sha256": None}
    folder = Path(model)
    if not folder.is_dir():
        package = importlib.util.find_spec(model) if model.isidentifier() else None
        if package is None or package.origin is None:
            raise _cannot_load(model, OSError("no such folder and no such installed package"))
        folder = Path(package.origin).parent
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    hashes = {file.relative_to(folder).as_posix(): sha256_of_file(file) for file in files}
    meta_file = next((file for file in files if file.name == "meta.json"), None)
    if meta_file is None:
        raise _cannot_load(model, OSError(f"no meta.json in {folder.name}"))
    meta = spacy.util.load_meta(meta_file)
    name = f"{meta.get('lang', '')}_{meta.get('name', '')}"
    return {"name": name, "version": meta.get("version", ""), "sha256": sha256_of_json(hashes)}


def _needed_components(nlp: Language, model: str) -> list[str]:
    finders = [name for name in nlp.pipe_names if "doc.ents" in nlp.get_pipe_meta(name).assigns]
    if not finders:
        raise UserError(
            model,
            got=f"a pipeline with {nlp.pipe_names or 'no components'}",
            expected="one with an `ner` component",
            mend="give another --model, or --model dictionary",
        )
    vectors = [name for name in nlp.pipe_names if nlp.get_pipe_meta(name).factory in _VECTOR_FACTORIES]
    return vectors + finders


def _cannot_load(model: str, error: Exception) -> UserError:
    url = _SCISPACY_RELEASE.format(name="en_core_sci_sm")
    return UserError(
        f"--model {model}",
        got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        expected="an installed spaCy pipeline or its folder",
        mend=f"install scispaCy's with `pip install --no-deps {url}`, or give --model dictionary",
    )
