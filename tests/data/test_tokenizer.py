"""Tokenizer folders: what loads, what is refused, and how another tokenizer is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from kebiolm.data.tokenizer import check_tokenizer, describe_tokenizer, load_tokenizer, save_tokenizer
from kebiolm.errors import UserError


def test_a_folder_with_only_a_vocabulary_loads(tiny_tokenizer_folder: Path):
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("Aspirin, of")) == [
        "[CLS]",
        "asp",
        "##irin",
        ",",
        "of",
        "[SEP]",
    ]


def test_special_pieces_in_a_text_are_text_also_after_saving(tiny_tokenizer_folder: Path, tmp_path: Path):
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    names = save_tokenizer(tokenizer, tmp_path / "copy")
    special = {tokenizer.mask_token_id, tokenizer.sep_token_id}
    for loaded in (tokenizer, load_tokenizer(tmp_path / "copy")):
        assert not special & set(loaded("[MASK] [SEP]", add_special_tokens=False)["input_ids"])
        assert not special & set(loaded.backend_tokenizer.encode("[MASK] [SEP]", add_special_tokens=False).ids)
    # Nothing of it is written: a user who loads the folder with transformers may ask for masks.
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")("[MASK]")["input_ids"][1] == tokenizer.mask_token_id
    assert not any("split_special" in (tmp_path / "copy" / name).read_text(encoding="utf-8") for name in names)


def test_the_released_folder_loads(real_data: Path):
    tokenizer = load_tokenizer(real_data / "released_checkpoint")
    description = describe_tokenizer(tokenizer)
    assert description["vocab_size"] == 28895
    ids = [description[name] for name in ("pad_id", "cls_id", "sep_id", "mask_id")]
    assert ids == [0, 2, 3, 4] and description["special_ids"] == [0, 1, 2, 3, 4]


def test_a_saved_tokenizer_is_the_same_one(tiny_tokenizer_folder: Path, tmp_path: Path):
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    names = save_tokenizer(tokenizer, tmp_path / "copy")
    assert "tokenizer.json" in names
    check_tokenizer(load_tokenizer(tmp_path / "copy"), {"tokenizer": describe_tokenizer(tokenizer)})


@pytest.mark.parametrize("token", ["[MASK]", "[CLS]", "[SEP]", "[PAD]"])
def test_a_vocabulary_without_a_special_piece_is_refused(tiny_tokenizer_folder: Path, tmp_path: Path, token: str):
    pieces = (tiny_tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    (tmp_path / "vocab.txt").write_text("\n".join(piece for piece in pieces if piece != token), encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_without_a_tokenizer_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer.json and no vocab.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing")
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="unreadable"):
        load_tokenizer(tmp_path)


def test_another_vocabulary_is_noticed(tiny_tokenizer_folder: Path, tmp_path: Path):
    manifest = {"tokenizer": describe_tokenizer(load_tokenizer(tiny_tokenizer_folder))}
    pieces = (tiny_tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    pieces[10], pieces[11] = pieces[11], pieces[10]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    with pytest.raises(UserError, match=r"model: got a tokenizer with .*; expected .* as in the shards; start from"):
        check_tokenizer(load_tokenizer(tmp_path), manifest, where="model")


def test_other_case_folding_with_the_same_vocabulary_is_noticed(tiny_tokenizer_folder: Path, tmp_path: Path):
    manifest = {"tokenizer": describe_tokenizer(load_tokenizer(tiny_tokenizer_folder))}
    (tmp_path / "vocab.txt").write_bytes((tiny_tokenizer_folder / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    with pytest.raises(UserError, match="behaviour_sha256"):
        check_tokenizer(load_tokenizer(tmp_path), manifest)


def test_our_modules_need_no_torch(tiny_tokenizer_folder: Path):
    # A preprocessing node has no torch: importing it there fails, so nothing of ours may try.
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import preprocessing.packing.pack, preprocessing.packing.shards_show\n"
        "import kebiolm.data.masking, kebiolm.data.tokenizer\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
