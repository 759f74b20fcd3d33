"""The whole of `kebiolm pack`: text and mentions survive, everything lost is counted, equal input gives equal bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from kebiolm.cli import app
from kebiolm.data.entity_vocab import NIL_ROW
from kebiolm.data.shard_format import PackedSequence, PackedShards
from kebiolm.data.tokenizer import check_tokenizer, load_tokenizer
from kebiolm.errors import UserError
from preprocessing.document import Document, Mention
from preprocessing.packing.best_fit import SequencePacker
from preprocessing.packing.pack import PackSettings, pack, split_of
from preprocessing.packing.segments import Segment
from preprocessing.packing.shards_show import show_shards
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
    config = PackSettings(max_length=48, heldout=0.2, sequences_per_shard=5)
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


def test_equal_input_gives_equal_bytes(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    annotated = write_annotated(make_documents(40))
    contents = []
    for name in ("a", "b"):
        pack(annotated, tiny_tokenizer_folder, tmp_path / name, settings=PackSettings(max_length=64, heldout=0.1))
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_more_mentions_than_the_cap(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    documents = [make_document("many", "aspirin " * 60), make_document("none", "Nothing of it."), *make_documents(3)]
    manifest = pack(
        write_annotated(documents), tiny_tokenizer_folder, tmp_path / "out", settings=PackSettings(heldout=0)
    )
    total = sum(len(document.mentions) for document in documents)
    counts = manifest["counts"]["train"]
    assert (counts["mentions_in"], counts["mentions_kept"], counts["mentions_beyond_cap"]) == (total, total - 10, 10)
    (full,) = (row for row in PackedShards.load(tmp_path / "out").train if "many" in row.document_ids)
    assert len(full.mention_starts) == 50
    assert (full.bio_labels == 1).sum() >= 60, "mentions beyond the cap keep their BIO labels"
    assert (np.diff(full.mention_starts) > 0).all()


def test_mentions_are_not_cut_where_another_sequence_has_room():
    def segment(name: str, mentions: int) -> Segment:
        spans = np.stack([np.arange(mentions), np.arange(mentions) + 1], axis=1).astype(np.int32)
        return Segment(
            doc_id=name,
            input_ids=np.full(10, 7, np.int32),
            word_starts=np.ones(10, np.uint8),
            mention_spans=spans,
            mention_entities=np.full(mentions, 3, np.int32),
        )

    packer = SequencePacker(max_length=64, max_mentions=6, window=100, cls_id=2, sep_id=3)
    for name, mentions in (("a", 4), ("b", 4), ("c", 2), ("d", 2), ("e", 9), ("f", 0)):
        assert packer.add(segment(name, mentions)) == []
    sequences = packer.finish()
    listed = sum(len(sequence.mention_starts) for sequence in sequences)
    assert listed == 4 + 4 + 2 + 2 + 6
    assert sorted(name for sequence in sequences for name in sequence.document_ids) == list("abcdef")
    assert packer.finish() == []


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 8)), min_size=1, max_size=40),
    window=st.integers(1, 50),
)
def test_every_segment_is_packed_once_within_the_limits(sizes, window):
    packer = SequencePacker(max_length=32, max_mentions=5, window=window, cls_id=2, sep_id=3)
    sequences = []
    for number, (length, wanted) in enumerate(sizes):
        mentions = min(wanted, length)
        segment = Segment(
            doc_id=str(number),
            input_ids=np.full(length, number + 10, np.int32),
            word_starts=np.ones(length, np.uint8),
            mention_spans=np.stack([np.arange(mentions), np.arange(mentions) + 1], axis=1).astype(np.int32),
            mention_entities=np.full(mentions, number, np.int32),
        )
        sequences += packer.add(segment)
    sequences += packer.finish()
    assert sorted(int(name) for row in sequences for name in row.document_ids) == list(range(len(sizes)))
    for sequence in sequences:
        assert len(sequence) <= 32 and len(sequence.mention_starts) <= 5
        for name, start, end in segments_of(sequence):
            number = int(name)
            assert sequence.input_ids[start:end].tolist() == [2, *[number + 10] * sizes[number][0], 3]
            inside = (sequence.mention_starts > start) & (sequence.mention_ends < end)
            assert inside.sum() == min(sizes[number][1], sizes[number][0], 5)
            assert (sequence.mention_entities[inside] == number).all()


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
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"max_length": 4}, {"max_mentions": 0}, {"heldout": 1.0}, {"unit": "page"}, {"sequences_per_shard": 0}]
)
def test_impossible_settings_are_refused(options: dict):
    with pytest.raises(UserError, match=f"--{next(iter(options)).replace('_', '-')}"):
        PackSettings(**options)


def test_commands(write_annotated: WriteAnnotated, tiny_tokenizer_folder: Path, tmp_path: Path):
    annotated, out = write_annotated(make_documents(12)), tmp_path / "out"
    command = ["pack", str(annotated), "--tokenizer", str(tiny_tokenizer_folder), "--out", str(out), "--heldout", "0.2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "fill rate" in result.output
    assert isinstance(CliRunner().invoke(app, command).exception, UserError), "the folder exists"
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
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
    with open(real_data / "corpora" / "cdr_train.pubtator.txt", "rb") as stream:
        documents = [record for record in read_pubtator(stream, "cdr") if isinstance(record, Document)]
    config = PackSettings(heldout=0)
    manifest = pack(write_annotated(documents), real_data / "released_checkpoint", tmp_path / "out", settings=config)
    assert manifest["counts"]["train"]["documents"] == 500
    assert manifest["counts"]["train"]["fill_rate"] >= 0.98
