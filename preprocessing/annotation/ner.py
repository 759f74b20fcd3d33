"""Finds the mentions in a text: any spaCy pipeline with an `ner`, or a dictionary of the knowledge base's names.

The text by which a mention is linked may differ from the mention: an abbreviation is linked by its long form, found by
the rule of Schwartz and Hearst (2003). The paper uses scispaCy for both (section 3.3).

What is found in a text depends on that text alone: not on those beside it, nor on how many are searched at once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc, Span
from spacy.util import filter_spans

from kebiolm.errors import UserError
from kebiolm.files import sha256_of_file, sha256_of_json
from preprocessing.annotation.abbreviations import AbbreviationFinder
from preprocessing.annotation.matrix_ops import use_blas

DICTIONARY = "dictionary"

# Spans are found by components that assign `doc.ents`, from vectors that one of these components makes; taggers,
# parsers and lemmatizers of a pipeline cost time and add nothing.
_VECTOR_FACTORIES = frozenset({"tok2vec", "transformer", "curated_transformer"})

_SCISPACY_RELEASE = "https://s3-us-west-2.amazonaws.com/ai2-s2-scispacy/releases/v0.5.4/{name}-0.5.4.tar.gz"
_MIN_DICTIONARY_CHARACTERS = 3

# Abstracts take the same time each in batches of 16 to 128, and more in larger ones. The memory of a batch grows with
# its tokens, at worst one for each character.
DOCUMENTS_PER_BATCH = 64
_CHARACTERS_PER_BATCH = 100_000

# Most of a tokenizer's time goes into words that it has not seen: an abstract takes 2.0 ms, and 0.65 ms where the
# words of 700 others are kept. 50,000 strings take 27 MiB.
WORDS_KEPT = 50_000


@dataclass(frozen=True, kw_only=True, slots=True)
class NerLimits:
    """What one document may cost. PubMed's longest abstracts have some 10,000 characters and a few dozen brackets.

    Attributes:
        max_characters: longer texts are not searched (spaCy itself stops at 1,000,000).
        max_word_squares: nor are texts whose words (anything without a space), their lengths squared, add up to more:
            a tokenizer's time grows with this sum. One word may have 2,000 characters; abstracts reach some 30,000.
        max_brackets: in texts with more opening brackets, abbreviations stay unresolved.
    """

    max_characters: int = 100_000
    max_word_squares: int = 4_000_000
    max_brackets: int = 2000


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
    """Why a text could not be searched: "text-too-long", "words-too-long" or "ner-error"."""

    reason: str
    detail: str


class MentionFinder:
    """A spaCy pipeline that was cut down to what finding mentions needs.

    Args:
        nlp: a pipeline whose components set `doc.ents`, or a blank one together with `matcher`.
        matcher: finds the spans instead of `doc.ents`; overlapping ones are resolved longest first, then leftmost.
        limits: what one document may cost.
        words_kept: remember about this many strings of the first texts, for speed.
    """

    def __init__(
        self,
        nlp: Language,
        *,
        matcher: PhraseMatcher | None = None,
        limits: NerLimits | None = None,
        words_kept: int = WORDS_KEPT,
    ) -> None:
        self._nlp, self._matcher, self._limits = nlp, matcher, limits or NerLimits()
        self._abbreviations = AbbreviationFinder(nlp.vocab)
        self._max_strings = len(nlp.vocab.strings) + words_kept

    def find(
        self,
        texts: Sequence[str],
        *,
        before_batch: Callable[[Sequence[int]], None] | None = None,
        batch_size: int = DOCUMENTS_PER_BATCH,
    ) -> list[FoundMentions | NerFailure]:
        """Search each text; one that fails leaves the others untouched.

        Args:
            texts: any number; those of about equal length are searched together.
            before_batch: called with the positions of some texts before these are searched, so that a process that
                dies or hangs leaves word of what it was at. A batch that raised is searched again text by text.
            batch_size: at most this many texts are searched together.

        Returns:
            One result for each text, in their order.
        """
        results: list[FoundMentions | NerFailure | None] = [self._check(text) for text in texts]
        places = sorted(
            (place for place, result in enumerate(results) if result is None), key=lambda place: len(texts[place])
        )
        for batch in _batches(texts, places, batch_size):
            for place, result in zip(batch, self._find_batch(texts, batch, before_batch), strict=True):
                results[place] = result
        return [result for result in results if result is not None]

    def _check(self, text: str) -> NerFailure | None:
        """Why a text is not searched; None where it is."""
        if len(text) > self._limits.max_characters:
            detail = f"{len(text)} characters; at most {self._limits.max_characters} are searched"
            return NerFailure(reason="text-too-long", detail=detail)
        lengths = [len(word) for word in text.split()]
        if (squares := sum(length * length for length in lengths)) > self._limits.max_word_squares:
            detail = f"up to {max(lengths)} characters without a space; squares of the lengths of words add up to "
            return NerFailure(
                reason="words-too-long", detail=f"{detail}{squares}, at most {self._limits.max_word_squares}"
            )
        return None

    def _find_batch(
        self, texts: Sequence[str], batch: Sequence[int], before_batch: Callable[[Sequence[int]], None] | None
    ) -> list[FoundMentions | NerFailure]:
        if before_batch is not None:
            before_batch(batch)
        chosen = [texts[place] for place in batch]
        try:
            self._keep_words(chosen)
            # Outside a memory zone spaCy keeps every string that it saw; a process that lives long would only grow.
            with self._nlp.memory_zone():
                docs = self._nlp.pipe(chosen, batch_size=len(chosen))
                return [self._read_doc(text, doc) for text, doc in zip(chosen, docs, strict=True)]
        except Exception as error:
            if len(batch) == 1:
                return [NerFailure(reason="ner-error", detail=f"{type(error).__name__}: {error}")]
        return [result for place in batch for result in self._find_batch(texts, [place], before_batch)]

    def _keep_words(self, texts: Iterable[str]) -> None:
        """Let the pipeline remember the words of the first texts that it sees: most of all words that will follow."""
        for text in texts:
            if len(self._nlp.vocab.strings) >= self._max_strings:
                return
            self._nlp.make_doc(text)

    def _read_doc(self, text: str, doc: Doc) -> FoundMentions:
        spans: Iterable[Span] = doc.ents
        if self._matcher is not None:
            spans = filter_spans(self._matcher(doc, as_spans=True))
        brackets = text.count("(")
        skipped = brackets > self._limits.max_brackets
        long_forms = self._abbreviations.find(doc) if brackets and not skipped else {}
        found = [(span.start_char, span.end_char) for span in spans]
        mentions = tuple(
            FoundMention(start=start, end=end, link_text=long_forms.get((start, end), text[start:end]))
            for start, end in found
            if not text[start:end].isspace()
        )
        return FoundMentions(mentions=mentions, abbreviations_skipped=skipped)


def _batches(texts: Sequence[str], places: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Cut `places` into batches of a bounded number of texts and, where there is more than one, of characters."""
    batch: list[int] = []
    characters = 0
    for place in places:
        if batch and (len(batch) == batch_size or characters + len(texts[place]) > _CHARACTERS_PER_BATCH):
            yield batch
            batch, characters = [], 0
        batch.append(place)
        characters += len(texts[place])
    if batch:
        yield batch


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
    use_blas(nlp)
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
