"""The whole of `kebiolm pack`: text and mentions survive, everything lost is counted."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from kebiolm.cli import app
from kebiolm.data.entity_vocab import NIL_ROW
from kebiolm.data.shard_format import PackedSequence, PackedShards
from kebiolm.data.tokenizer import check_tokenizer, load_tokenizer
from kebiolm.errors import UserError
from preprocessing.document import Document, Mention
from preprocessing.packing.pack import pack
from preprocessing.packing.settings import PackSettings
from preprocessing.packing.shards_show import show_shards
from preprocessing.packing.worker import split_of
from preprocessing.sources.pubtator import read_pubtator

WriteAnnotated = Callable[[Iterable[Document]], Path]
CUIS = {"aspirin": "C0004057", "headache": "C0018681", "severe pain": "C0278140"}
SENTENCES = ("Aspirin treats the headache.", "The patients of 5 mg (p<0.05).", "Severe pain!", "Nothing of it?")


def make_document(doc_id: str, text: str) -> Document:
    """A document in which every name of `CUIS` is a mention."""
    found = []
    for name, cui in CUIS.items():
        start = text.lower().find(name)
        while start >= 0:
            found.append(Mention(start=start, end=start + len(name), cui=cui, score=1.0))
            start = text.lower().find(name, start + 1)
    return Document(doc_id=doc_id, text=text, mentions=tuple(sorted(found, key=lambda mention: mention.start)))


def make_documents(count: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [make_document(f"d{number}", " ".join(rng.choice(SENTENCES, rng.integers(1, 9)))) for number in range(count)]


def segments_of(sequence: PackedSequence) -> list[tuple[str, int, int]]:
    borders = pairwise([*sequence.document_starts.tolist(), len(sequence)])
    return [(name, start, end) for name, (start, end) in zip(sequence.document_ids, borders, strict=True)]


def test_text_and_mentions_survive(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    documents = make_documents(60)
    config = PackSettings(max_length=48, heldout=0.2)
    manifest = pack(write_annotated(documents), tiny_tokenizer_folder, tmp_path / "shards", settings=config)
    shards = PackedShards.load(tmp_path / "shards", verify=True)
    tokenizer = load_tokenizer(shards.tokenizer_path)
    check_tokenizer(load_tokenizer(tiny_tokenizer_folder), manifest)
    pieces, mentions, split_of_document = defaultdict(Counter), Counter(), defaultdict(set)
    for split, sequences in (("train", shards.train), ("heldout", shards.heldout)):
        for sequence in sequences:
            assert len(sequence) <= 48
            for name, start, end in segments_of(sequence):
                ids = sequence.input_ids[start:end].tolist()
                assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
                pieces[name].update(ids[1:-1])
                split_of_document[name].add(split)
            for start, end, row in zip(
                sequence.mention_starts, sequence.mention_ends, sequence.mention_entities, strict=True
            ):
                assert CUIS[tokenizer.decode(sequence.input_ids[start:end])] == shards.entity_vocab.cui(row)
                assert sequence.bio_labels[start:end].tolist() == [1] + [2] * (end - start - 1)
                mentions[shards.entity_vocab.cui(row)] += 1
            assert (sequence.bio_labels != 0).sum() == (sequence.mention_ends - sequence.mention_starts).sum()
    for document in documents:
        assert pieces[document.doc_id] == Counter(tokenizer.encode(document.text, add_special_tokens=False))
    assert mentions == Counter(mention.cui for document in documents for mention in document.mentions)
    assert all(len(splits) == 1 for splits in split_of_document.values())
    assert set(split_of_document) == {document.doc_id for document in documents}
    counts = manifest["counts"]
    assert counts["heldout"]["documents"] > 0
    assert counts["train"]["documents"] + counts["heldout"]["documents"] == 60
    assert counts["train"]["sequences"] == len(shards.train)
    assert counts["train"]["cut_documents"] > 0, "the sample should hold documents longer than a sequence"


def test_one_segment_decodes_to_its_text(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    document = make_document("1", "Aspirin treats the headache of the patient")
    pack(write_annotated([document]), tiny_tokenizer_folder, tmp_path / "out", settings=PackSettings(heldout=0))
    (sequence,) = PackedShards.load(tmp_path / "out").train
    tokenizer = load_tokenizer(tiny_tokenizer_folder)
    assert tokenizer.decode(sequence.input_ids, skip_special_tokens=True) == document.text.lower()


def test_the_cap_holds_for_each_document(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    # Both fit into one sequence, which then has 50 + 49 mentions.
    documents = [make_document("many", "aspirin " * 60), make_document("fewer", "aspirin " * 49)]
    manifest = pack(
        write_annotated(documents), tiny_tokenizer_folder, tmp_path / "out", settings=PackSettings(heldout=0)
    )
    counts = manifest["counts"]["train"]
    assert (counts["mentions_in"], counts["mentions_kept"], counts["mentions_beyond_cap"]) == (109, 99, 10)
    (sequence,) = PackedShards.load(tmp_path / "out").train
    assert len(sequence.mention_starts) == 99
    assert (sequence.bio_labels == 1).sum() == 109, "mentions beyond the cap keep their BIO labels"
    assert (np.diff(sequence.mention_starts) > 0).all()


def test_special_pieces_in_a_text_are_text(
    write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path
):
    documents = [make_document("1", "the [MASK] [SEP] pain")]
    pack(write_annotated(documents), tiny_tokenizer_folder, tmp_path / "out", settings=PackSettings(heldout=0))
    (sequence,) = PackedShards.load(tmp_path / "out").train
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert sequence.input_ids.tolist() == tokenizer("the [MASK] [SEP] pain")["input_ids"]
    assert not set(sequence.input_ids[1:-1].tolist()) & set(tokenizer.all_special_ids)


def test_lost_mentions_are_counted(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    text = "aspirin \u200b headache " + "a" * 40 + "."

    def mention(start: int, end: int) -> Mention:
        return Mention(start=start, end=end, cui="C0004057", score=1.0)

    # Two halves of one piece; a character that the tokenizer drops; a word that is longer than a sequence.
    mentions = (mention(0, 2), mention(2, 3), mention(8, 9), mention(10, 18), mention(19, 59))
    annotated = write_annotated([Document(doc_id="1", text=text, mentions=mentions), make_document("2", "")])
    settings = PackSettings(heldout=0, max_length=24, max_mentions=1)
    counts = pack(annotated, tiny_tokenizer_folder, tmp_path / "out", settings=settings)["counts"]["train"]
    assert {name: count for name, count in counts.items() if name.startswith("mentions")} == {
        "mentions_in": 5,
        "mentions_kept": 1,
        "mentions_nil": 0,
        "mentions_beyond_cap": 1,
        "mentions_unaligned": 1,
        "mentions_overlapping": 1,
        "mentions_broken": 1,
    }
    assert (counts["documents"], counts["empty_documents"], counts["cut_documents"]) == (2, 1, 1)


def test_rare_concepts_become_nil(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    documents = [make_document("1", "aspirin aspirin headache"), make_document("2", "aspirin")]
    config = PackSettings(heldout=0, min_count=2)
    manifest = pack(write_annotated(documents), tiny_tokenizer_folder, tmp_path / "out", settings=config)
    shards = PackedShards.load(tmp_path / "out")
    rows = [row for sequence in shards.train for row in sequence.mention_entities.tolist()]
    assert sorted(rows) == [NIL_ROW, 3, 3, 3] and len(shards.entity_vocab) == 4
    assert manifest["counts"]["train"]["mentions_nil"] == 1


def test_unit_sentence(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    document = make_document("1", "Aspirin treats. The headache of it. Severe pain!")
    config = PackSettings(heldout=0, unit="sentence")
    manifest = pack(write_annotated([document]), tiny_tokenizer_folder, tmp_path / "out", settings=config)
    (sequence,) = PackedShards.load(tmp_path / "out").train
    assert sequence.document_ids == ("1", "1", "1") and manifest["counts"]["train"]["segments"] == 3


def test_the_split_follows_from_the_id():
    ids = [f"pmid{number}" for number in range(20_000)]
    heldout = {name for name in ids if split_of(name, 0.05) == "heldout"}
    assert len(heldout) == pytest.approx(1000, abs=120)
    assert heldout <= {name for name in ids if split_of(name, 0.1) == "heldout"}
    assert not any(split_of(name, 0.0) == "heldout" for name in ids)


def test_nothing_to_train_on_is_refused(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="1 documents to train on, none with text"):
        pack(
            write_annotated([Document(doc_id="1", text=" ")]),
            tiny_tokenizer_folder,
            tmp_path / "out",
            settings=PackSettings(heldout=0),
        )
    with pytest.raises(UserError, match=r"not finished; .*run the same `kebiolm pack` command again"):
        PackedShards.load(tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"max_length": 4}, {"max_mentions": 0}, {"heldout": 1.0}, {"unit": "page"}, {"documents_per_shard": 0}]
)
def test_impossible_settings_are_refused(options: dict):
    with pytest.raises(UserError, match=f"--{next(iter(options)).replace('_', '-')}"):
        PackSettings(**options)


def test_commands(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    annotated, out = write_annotated(make_documents(12)), tmp_path / "out"
    command = ["pack", str(annotated), "--tokenizer", str(tiny_tokenizer_folder), "--out", str(out), "--heldout", "0.2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "fill rate" in result.output and "of 50 a segment" in result.output
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and "nothing to do" in again.output
    other = [*command, "--max-length", "64", "--documents-per-shard", "5"]
    refused = CliRunner().invoke(app, other).exception
    assert isinstance(refused, UserError) and "settings.max_length: 512 -> 64" in str(refused)
    assert CliRunner().invoke(app, [*other, "--overwrite"]).exit_code == 0
    assert PackedShards.load(out).max_length == 64
    result = CliRunner().invoke(app, ["shards", "show", str(out), "--n", "1"])
    assert result.exit_code == 0 and "aspirin" in result.output and "C0004057" in result.output


def test_show_reads_like_text(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    documents = [make_document("7", "Aspirin (5.2 mg) treats headache; severe pain."), make_document("8", "The pain.")]
    pack(write_annotated(documents), tiny_tokenizer_folder, tmp_path / "out", settings=PackSettings(heldout=0))
    printed = StringIO()
    show_shards(tmp_path / "out", console=Console(file=printed, width=100))
    text = printed.getvalue()
    assert "aspirin¹ (5.2 mg) treats headache²; severe pain³." in text
    assert " 7 " in text and " 8 " in text and "2 segments" in text
    with pytest.raises(UserError, match="--split"):
        show_shards(tmp_path / "out", split="test")
    with pytest.raises(UserError, match="--first"):
        show_shards(tmp_path / "out", first=99)


def test_real_abstracts_fill_sequences(write_annotated: WriteAnnotated, real_data: Path, tmp_path: Path):
    """Also with an annotator that finds a mention in every second long word, 40 in an abstract."""
    with open(real_data / "corpora" / "cdr_train.pubtator.txt", "rb") as stream:
        records = [record for record in read_pubtator(stream, "cdr") if isinstance(record, Document)]
    documents = []
    for record in records:
        words = list(re.finditer("[A-Za-z]{6,}", record.text))[::2]
        mentions = [Mention(start=word.start(), end=word.end(), cui="C0000001", score=1.0) for word in words]
        documents.append(Document(doc_id=record.doc_id, text=record.text, mentions=tuple(mentions)))
    assert sum(len(document.mentions) for document in documents) / len(documents) > 40
    config = PackSettings(heldout=0.1)
    manifest = pack(write_annotated(documents), real_data / "released_checkpoint", tmp_path / "out", settings=config)
    train, heldout = manifest["counts"]["train"], manifest["counts"]["heldout"]
    assert train["documents"] + heldout["documents"] == 500
    assert train["fill_rate"] >= 0.98
    assert heldout["fill_rate"] >= 0.95, "also 50 documents fill their sequences"
