"""The sample's abstracts with their gold mentions, packed: what a pretraining run under test trains on."""

from __future__ import annotations

from pathlib import Path

from preprocessing.document import Document, Mention
from preprocessing.packing.pack import pack
from preprocessing.packing.settings import PackSettings
from preprocessing.sample.build import build_sample
from preprocessing.sources.pubtator import read_gold
from preprocessing.umls.build_kb import build_kb
from tests.conftest import write_annotated_folder


def make_sample_shards(folder: Path) -> Path:
    """Build the sample in a new folder; returns its shards."""
    folder.mkdir()
    build_sample(folder / "sample")
    build_kb(folder / "sample" / "umls", folder / "kb")
    documents = [
        Document(
            doc_id=gold.doc_id,
            text=gold.text,
            mentions=tuple(Mention(start=m.start, end=m.end, cui=m.codes[0], score=1.0) for m in gold.mentions),
        )
        for gold in read_gold(folder / "sample" / "gold.pubtator.txt")
    ]
    (folder / "annotated").mkdir()
    pack(
        write_annotated_folder(folder / "annotated", documents),
        folder / "sample" / "tokenizer",
        folder / "shards",
        settings=PackSettings(max_length=128, heldout=0.1),
        knowledge_base=folder / "kb",
    )
    return folder / "shards"
