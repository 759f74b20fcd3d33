"""A trained model as a Python object: `KeBioLM.from_pretrained(folder).link(texts)`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kebiolm.data.entity_vocab import EntityVocab
from kebiolm.linking.linked_text import Candidate, LinkedMention, LinkedText
from kebiolm.linking.load import load_index, load_model_folder
from kebiolm.linking.read_windows import ReadWindow, read_windows
from kebiolm.linking.windows import make_windows
from kebiolm.model import KeBioLMModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SURROGATE = re.compile("[\ud800-\udfff]")


class KeBioLM:
    """Finds mentions of biomedical concepts in texts, links them, and turns texts and mentions into vectors.

    Texts may have any length. Those longer than the model's input are read in windows, so attention does not reach
    beyond a window's ends; positions are always those of the whole text.

    With an entity index (see `kebiolm index`) a mention's nearest entities are those that the index finds, attention
    and the entity vector that goes into the text are computed over them, and no mention has a probability: equation 10
    is a softmax over all entities. A mention for which the index finds nothing at all is left out.
    """

    def __init__(
        self, model: KeBioLMModel, tokenizer: PreTrainedTokenizerFast, vocabulary: EntityVocab, device: torch.device
    ) -> None:
        self.model = model.to(device).eval()
        self.tokenizer, self.vocabulary = tokenizer, vocabulary

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, device: str | torch.device | None = None, index: Path | str | None = None
    ) -> KeBioLM:
        """Load a folder made by `kebiolm export`.

        Args:
            folder: with config.json, model.safetensors, a tokenizer and entity_vocab.tsv.
            device: where to compute; None: the first GPU if there is one, else the CPU.
            index: file made by `kebiolm index` for this folder, to search in place of the whole entity table.

        Raises:
            UserError: a file is missing or broken, or the files do not belong together.
        """
        model, tokenizer, vocabulary = load_model_folder(Path(folder))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = cls(model, tokenizer, vocabulary, torch.device(device))
        if index is not None:
            table = loaded.model.entity_linker.entity_embeddings
            table.index = load_index(Path(index), table)
        return loaded

    def link(self, texts: Sequence[str], top: int = 5) -> list[LinkedText]:
        """Detect and link mentions.

        Args:
            texts: any number of texts of any length.
            top: concepts to return for each mention, the best one included; at most k of equation 3.

        Returns:
            A result for each text, in order; an empty text has no mentions. Lone surrogates in a text are replaced by
            U+FFFD, so that positions stay.
        """
        if top < 1:
            raise ValueError(f"expected top >= 1, got {top}")
        texts = _readable(texts)
        mentions: list[list[LinkedMention]] = [[] for _ in texts]
        for read in self._read(texts, top):
            index = read.window.text_index
            mentions[index] += self._linked_mentions(texts[index], read)
        return [LinkedText(text=text, mentions=tuple(found)) for text, found in zip(texts, mentions, strict=True)]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """A vector for each text: the mean of the final states of its pieces, without [CLS] and [SEP].

        Returns:
            [len(texts), hidden_size] float32; zeros for a text without a piece.
        """
        texts = _readable(texts)
        sums = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        pieces = np.zeros((len(texts), 1), dtype=np.float32)
        for read in self._read(texts, top=1):
            sums[read.window.text_index] += read.state_sum
            pieces[read.window.text_index] += len(read.window.input_ids)
        return sums / np.maximum(pieces, 1)

    def encode_mentions(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The vectors h'_m of each text's mentions in the space of entities, in the order in which `link` has them.

        Returns:
            For each text [mentions, entity_size] float32; its dot product with a row of the entity table is the score
            of that entity.
        """
        return [vectors for _, vectors in self.locate_and_encode_mentions(texts)]

    def locate_and_encode_mentions(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Where each text's mentions are, and their vectors.

        Returns:
            For each text [mentions, 2] int64, first character and the one after the last, and [mentions, entity_size]
            float32 as `encode_mentions` returns it.
        """
        texts = _readable(texts)
        spans = [[np.zeros((0, 2), dtype=np.int64)] for _ in texts]
        vectors = [[np.zeros((0, self.model.config.entity_size), dtype=np.float32)] for _ in texts]
        for read in self._read(texts, top=1):
            spans[read.window.text_index].append(np.array(read.spans, dtype=np.int64).reshape(-1, 2))
            vectors[read.window.text_index].append(read.mention_vectors)
        return [(np.concatenate(of_text), np.concatenate(parts)) for of_text, parts in zip(spans, vectors, strict=True)]

    def _read(self, texts: Sequence[str], top: int) -> list[ReadWindow]:
        windows = make_windows(self.tokenizer, texts, self.model.config.max_position_embeddings - 2)
        return read_windows(self.model, self.tokenizer, windows, top)

    def _linked_mentions(self, text: str, read: ReadWindow) -> Iterator[LinkedMention]:
        vocabulary = self.vocabulary
        for (start, end), rows, weights, probability in zip(
            read.spans, read.rows.tolist(), read.weights.tolist(), read.probabilities.tolist(), strict=True
        ):
            best, *others = (
                Candidate(cui=vocabulary.cui(row), name=vocabulary.name(row), weight=weight)
                for row, weight in zip(rows, weights, strict=True)
                if row >= 0
            )
            yield LinkedMention(
                start=start,
                end=end,
                text=text[start:end],
                cui=best.cui,
                name=best.name,
                semantic_types=vocabulary.semantic_types(rows[0]),
                score=best.weight,
                probability=None if math.isnan(probability) else probability,
                alternatives=tuple(others),
            )


def _readable(texts: Sequence[str]) -> list[str]:
    """Texts without lone surrogates, which no tokenizer takes and no terminal prints; each is one character still."""
    if isinstance(texts, str):
        raise TypeError("expected a list of texts, got one string; put it into a list")
    return [_SURROGATE.sub("\ufffd", text) for text in texts]
