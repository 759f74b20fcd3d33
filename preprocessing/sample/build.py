"""Write the whole sample: mini UMLS, mini PubMed, gold mentions, code table, tokenizer, and a manifest of these."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from kebiolm.console import console
from kebiolm.files import atomic_folder, describe_file, has_format, write_json
from preprocessing.sample.abstracts import make_abstracts
from preprocessing.sample.concepts import all_concepts
from preprocessing.sample.pubmed_writer import write_gold, write_pubmed
from preprocessing.sample.relations import RELATIONS, all_facts
from preprocessing.sample.rrf_writer import write_umls
from preprocessing.sample.tokenizer_trainer import train_tokenizer

FORMAT, VERSION = "kebiolm-sample", 1


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Size and seed of the sample; equal settings give equal bytes."""

    seed: int = 0
    """Seed of the order of facts, of wording and of numbers; the mini UMLS is always the same."""
    num_abstracts: int = 400
    abstracts_per_file: int = 100
    vocab_size: int = 2000
    """Pieces of the tokenizer."""


def build_sample(out: Path, settings: SampleSettings | None = None, *, overwrite: bool = False) -> None:
    """Write umls/, pubmed/, gold.pubtator.txt, codes.tsv, tokenizer/ and manifest.json into a new folder.

    Raises:
        UserError: `out` exists, and is no earlier sample or `overwrite` is false.
    """
    settings = settings or SampleSettings()
    abstracts = make_abstracts(settings.num_abstracts, settings.seed)
    texts = [abstract.document.text for abstract in abstracts]
    texts += [name for concept in all_concepts() for name in concept.names]
    counts = {
        "concepts": len(all_concepts()),
        "facts": len(all_facts()),
        "relations": len(RELATIONS),
        "abstracts": len(abstracts),
        "mentions": sum(len(abstract.document.mentions) for abstract in abstracts),
    }
    with atomic_folder(out, overwrite=overwrite, is_ours=lambda folder: has_format(folder, FORMAT)) as folder:
        write_umls(folder / "umls")
        write_pubmed(folder / "pubmed", abstracts, settings.abstracts_per_file)
        write_gold(folder / "gold.pubtator.txt", abstracts)
        # The gold mentions carry CUIs, so each code stands for itself.
        codes = "".join(f"{concept.cui}\t{concept.cui}\n" for concept in all_concepts())
        (folder / "codes.tsv").write_bytes(codes.encode("utf-8"))
        train_tokenizer(texts, settings.vocab_size, folder / "tokenizer")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "settings": asdict(settings),
            "counts": counts,
            "files": {path.relative_to(folder).as_posix(): describe_file(path) for path in files},
        }
        write_json(folder / "manifest.json", manifest)
    console.print(
        f"{out}: {counts['concepts']} concepts, {counts['facts']} facts of {counts['relations']} kinds, "
        f"{counts['abstracts']} abstracts with {counts['mentions']} mentions"
    )
