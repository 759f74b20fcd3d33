"""Train a small lower-casing WordPiece tokenizer, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer, models, normalizers, pre_tokenizers, trainers

from kebiolm.files import write_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""In the order of their ids, from 0."""
_PREFIX = "##"
_MAX_LENGTH = 512


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train on texts and write a folder that `AutoTokenizer.from_pretrained` loads as a BERT tokenizer.

    Args:
        texts: what to learn the pieces from.
        vocab_size: number of pieces, special tokens included.
        folder: folder to make: vocab.txt, tokenizer.json, tokenizer_config.json.
    """
    texts = list(texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = sorted({letter for text in texts for letter in tokenizer.normalizer.normalize_str(text)} - {" "})
    # The trainer numbers the "##x" pieces in the order of a hash map, which changes from run to run and decides ties
    # between merges. Given as special tokens they have fixed numbers.
    continuations = [_PREFIX + letter for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=letters,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab()
    pieces = sorted(vocab, key=vocab.__getitem__)

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_bytes("".join(f"{piece}\n" for piece in pieces).encode("utf-8"))
    bert = BertWordPieceTokenizer({piece: row for row, piece in enumerate(pieces)}, lowercase=True)
    bert.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": _MAX_LENGTH}
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    write_json(folder / "tokenizer_config.json", config | dict(zip(names, SPECIAL_TOKENS, strict=True)))
