"""The word-piece tokenizer: loading it from a folder, and telling two tokenizers apart.

Needs `transformers` but no torch, and never the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kebiolm.errors import UserError
from kebiolm.files import sha256_of_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_REQUIRED_TOKENS = ("cls_token", "sep_token", "mask_token", "pad_token")
_MEND = "give a folder with tokenizer.json or vocab.txt, such as a downloaded PubMedBERT"

# Two tokenizers with one vocabulary can still differ in case folding, accents and punctuation; this text shows it.
_PROBE_TEXT = "Naïve IL-2 (β-blocker) 5-HT3; the patient's T-cells didn't re-grow, 中 x_1 [3H]-β."


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder, offline; the characters "[MASK]" in a text are text to it, no special piece.

    A folder with only a BERT `vocab.txt` (and perhaps the small JSON files that older releases have) will do.

    Raises:
        UserError: the folder has no tokenizer, or one without [CLS], [SEP], [MASK] or [PAD].
    """
    folder = Path(folder)
    has_json, has_vocab = (folder / "tokenizer.json").is_file(), (folder / "vocab.txt").is_file()
    if not (has_json or has_vocab):
        got = "no tokenizer.json and no vocab.txt" if folder.is_dir() else "no such folder"
        raise UserError(folder, got=got, expected="a tokenizer folder", mend=_MEND)

    # `transformers` takes seconds to import, so only a step that needs a tokenizer pays for it.
    from transformers import AutoTokenizer, BertTokenizerFast

    try:
        # AutoTokenizer asks for a config.json or a class name, which folders with only a vocab.txt lack.
        loader = AutoTokenizer if has_json else BertTokenizerFast
        tokenizer = loader.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(folder, got=f"an unreadable tokenizer ({error})", expected="a tokenizer", mend=_MEND) from None
    if not tokenizer.is_fast:
        raise UserError(folder, got="a slow tokenizer", expected="one with tokenizer.json", mend=_MEND)
    vocabulary = tokenizer.get_vocab()
    for name in _REQUIRED_TOKENS:
        token = getattr(tokenizer, name)
        # A BERT class adds a missing special token behind the vocabulary; a model's embeddings have no such row.
        if token is None or vocabulary[token] >= tokenizer.vocab_size:
            raise UserError(
                folder, got=f"a vocabulary without {name} ({token})", expected="a BERT vocabulary", mend=_MEND
            )
    # The first is for calls of the tokenizer, which set the second anew; the second is for calls of its backend.
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[str]:
    """Write a tokenizer so that the folder loads by itself; returns the names of its files, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    return sorted(path.name for path in folder.iterdir())


def describe_tokenizer(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a manifest records of a tokenizer: enough to mask, to size a model, and to notice another one."""
    vocabulary = tokenizer.get_vocab()
    probe = tokenizer(_PROBE_TEXT, add_special_tokens=True)["input_ids"]
    return {
        "class": type(tokenizer).__name__,
        "vocab_size": len(tokenizer),
        "vocab_sha256": sha256_of_json(sorted(vocabulary, key=vocabulary.__getitem__)),
        "behaviour_sha256": sha256_of_json(probe),
        "cls_id": tokenizer.cls_token_id,
        "sep_id": tokenizer.sep_token_id,
        "mask_id": tokenizer.mask_token_id,
        "pad_id": tokenizer.pad_token_id,
        "special_ids": sorted(tokenizer.all_special_ids),
    }


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, manifest: dict[str, Any], *, where: object = "tokenizer"
) -> None:
    """Check that a tokenizer is the one that made a shards folder.

    Args:
        tokenizer: the tokenizer of a model.
        manifest: the manifest of a shards folder.
        where: what the error message should name, such as the model's path.

    Raises:
        UserError: vocabulary, special ids or splitting differ.
    """
    found, recorded = describe_tokenizer(tokenizer), manifest["tokenizer"]
    for field in sorted(recorded):
        # The class name may change between versions of transformers while the pieces stay the same.
        if field != "class" and found.get(field) != recorded[field]:
            raise UserError(
                where,
                got=f"a tokenizer with {field} {_short(found.get(field))}",
                expected=f"{_short(recorded[field])} as in the shards",
                mend="start from the model whose tokenizer made the shards, or run `kebiolm pack` with this tokenizer",
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
