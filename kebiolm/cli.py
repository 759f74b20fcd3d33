"""The `kebiolm` command: wiring only; every command imports its work when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kebiolm import __version__
from kebiolm.console import console, exit_on_user_error
from kebiolm.errors import UserError

app = typer.Typer(
    name="kebiolm",
    help="KeBioLM: from UMLS files and PubMed abstracts to a knowledge-enhanced biomedical BERT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Packages that only some nodes have, as in pyproject.toml, and what to install where one is missing.
EXTRAS = {
    ("numba", "ray", "scipy", "scispacy", "spacy"): "pip install 'kebiolm[prep]'",
    ("safetensors", "torch"): "pip install 'kebiolm[model]' to use a model, 'kebiolm[train]' to train one",
    ("deepspeed", "mlflow", "psutil", "pydantic"): "pip install 'kebiolm[train]'",
}


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's mistake ends in one line and status 2, never in a traceback."""
    with exit_on_user_error():
        try:
            app()
        except ModuleNotFoundError as error:
            # The name of the package itself: where only a part of one is missing, it is there but of a wrong version.
            for packages, mend in EXTRAS.items():
                if error.name in packages:
                    got, expected = "a package that is not installed", "the packages of this command"
                    raise UserError(error.name, got=got, expected=expected, mend=mend) from None
            raise


kb_app = typer.Typer(help="Build a knowledge base from UMLS files.", no_args_is_help=True)
shards_app = typer.Typer(help="Look into packed training shards.", no_args_is_help=True)
track_app = typer.Typer(help="Look at a run; deliver its figures to MLflow.", no_args_is_help=True)
app.add_typer(kb_app, name="kb")
app.add_typer(shards_app, name="shards")
app.add_typer(track_app, name="track")

# Commands stand in the order in which a newcomer runs them.


@kb_app.command("build")
def kb_build(
    umls: Annotated[Path, typer.Option(help="META folder: MRCONSO, MRREL, MRSTY, MRDEF; plain, .gz or in parts.")],
    out: Annotated[Path, typer.Option(help="Folder to write the knowledge base to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Build a knowledge base (concepts, names, triples, link index) from UMLS files."""
    from preprocessing.umls.build_kb import build_kb

    build_kb(umls, out, overwrite=overwrite)


@app.command("sample")
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to write the sample to.")],
    seed: Annotated[int, typer.Option(help="Seed of all random choices; the same seed gives the same bytes.")] = 0,
    abstracts: Annotated[int, typer.Option(min=1, help="Number of abstracts.")] = 400,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write a made-up mini UMLS and mini PubMed with known answers, for trying every other command."""
    from preprocessing.sample.build import SampleSettings, build_sample

    build_sample(out, SampleSettings(seed=seed, num_abstracts=abstracts), overwrite=overwrite)


@app.command("annotate")
def annotate(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Abstracts: PubMed XML, PubMedDS or {id, text} JSON lines, PubTator; or folders."),
    ],
    *,
    kb: Annotated[Path, typer.Option(help="Folder made by `kebiolm kb build`.")],
    model: Annotated[str, typer.Option(help="spaCy pipeline with an `ner` (name or folder), or `dictionary`.")],
    out: Annotated[Path, typer.Option(help="Folder to write the annotated documents to.")],
    threshold: Annotated[float, typer.Option(help="Keep the best concept if its score is strictly above this.")] = 0.85,
    linker: Annotated[
        str, typer.Option(help="exact, scispacy-hnsw (approximate), or the folder of a published scispaCy linker.")
    ] = "exact",
    document_timeout: Annotated[float, typer.Option(help="Seconds after which a document is set aside.")] = 120.0,
    slice_documents: Annotated[int, typer.Option(help="Documents of one unit of work.")] = 2000,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with its own copy of the model.")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: this machine.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew if OUT holds an earlier job.")] = False,
) -> None:
    """Find and link mentions in abstracts; a command that was interrupted goes on where it stopped."""
    from preprocessing.annotation.job import AnnotationJob, list_inputs
    from preprocessing.annotation.run import run_job

    job = AnnotationJob(
        inputs=list_inputs(inputs),
        kb=kb,
        model=model,
        out=out,
        threshold=threshold,
        linker=linker,
        slice_documents=slice_documents,
        document_seconds=document_timeout,
    )
    run_job(job, workers=workers, ray_address=ray_address, overwrite=overwrite)


@app.command("annotate-eval")
def annotate_eval(
    annotated: Annotated[Path, typer.Argument(help="Folder made by `kebiolm annotate`.")],
    *,
    gold: Annotated[Path, typer.Option(help="The same documents with gold mentions, PubTator format.")],
    codes: Annotated[Path, typer.Option(help="Table without header: gold code, tab, CUI.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure mentions and their concepts against a gold standard."""
    from preprocessing.annotation.evaluation import evaluate_and_report

    evaluate_and_report(annotated, gold, codes, json_file)


@app.command("pack")
def pack(
    annotated: Annotated[Path, typer.Argument(help="Folder made by `kebiolm annotate`.")],
    *,
    tokenizer: Annotated[Path, typer.Option(help="Folder of the model's tokenizer: tokenizer.json or vocab.txt.")],
    out: Annotated[Path, typer.Option(help="Shards folder to make.")],
    kb: Annotated[
        Path | None, typer.Option(help="Folder made by `kebiolm kb build`: names for the entity vocabulary.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Most word pieces of a sequence.")] = 512,
    max_mentions: Annotated[int, typer.Option(help="Most mentions of a document that are linked.")] = 50,
    unit: Annotated[str, typer.Option(help="What attends to each other: document or sentence.")] = "document",
    min_count: Annotated[int, typer.Option(help="Concepts with fewer mentions get no row; they are NIL.")] = 1,
    heldout: Annotated[float, typer.Option(help="Share of the documents for evaluation.")] = 0.01,
    documents_per_shard: Annotated[
        int, typer.Option(help="Most documents of one file: the unit of work and of memory.")
    ] = 16384,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")] = 1,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: this machine.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew if OUT holds an earlier job.")] = False,
) -> None:
    """Pack annotated documents into training shards; a command that was interrupted goes on where it stopped."""
    from preprocessing.packing.counts import print_summary
    from preprocessing.packing.pack import pack as run
    from preprocessing.packing.settings import PackSettings

    settings = PackSettings(
        max_length=max_length,
        max_mentions=max_mentions,
        unit=unit,
        min_count=min_count,
        heldout=heldout,
        documents_per_shard=documents_per_shard,
    )
    manifest = run(
        annotated,
        tokenizer,
        out,
        settings=settings,
        knowledge_base=kb,
        workers=workers,
        ray_address=ray_address,
        overwrite=overwrite,
    )
    print_summary(manifest, out)


@shards_app.command("show")
def shards_show(
    shards: Annotated[Path, typer.Argument(help="Folder made by `kebiolm pack`.")],
    *,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of sequences.")] = 3,
    split: Annotated[str, typer.Option(help="train or heldout.")] = "train",
    first: Annotated[int, typer.Option(help="Number of the first sequence.")] = 0,
) -> None:
    """Print packed sequences with their mentions in colour."""
    from preprocessing.packing.shards_show import show_shards

    show_shards(shards, n=n, split=split, first=first)


@app.command("status")
def status(
    folder: Annotated[Path, typer.Argument(help="OUT of `kebiolm annotate` or `kebiolm pack`, running or not.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the job is finished.")] = False,
) -> None:
    """Say how far a job is; reads manifests only, so any shell or machine that sees the folder can ask."""
    from preprocessing.watch.status import show_status

    show_status(folder, as_json=as_json, watch=watch)


@app.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(help="Annotated documents, training shards or a knowledge base.")],
    kb: Annotated[Path | None, typer.Option(help="Knowledge base of annotated documents: checks its CUIs.")] = None,
) -> None:
    """Check hashes, sizes, schemas and counts; lists every problem, status 1 where there is one."""
    from preprocessing.watch.verify import verify as run

    raise typer.Exit(run(folder, kb=kb))


@app.command("annotation-report")
def annotation_report(
    annotated: Annotated[Path, typer.Argument(help="Folder made by `kebiolm annotate`.")],
    *,
    kb: Annotated[Path, typer.Option(help="The knowledge base that it was linked to.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    shards: Annotated[Path | None, typer.Option(help="Shards packed from it, for the fill rate.")] = None,
) -> None:
    """Write the report of an annotation job as one HTML page."""
    from preprocessing.watch.report import write_report

    write_report(annotated, kb, out, shards=shards)
    console.print(f"report: {out}", markup=False)


@app.command("plan-annotation")
def plan_annotation(
    *,
    docs: Annotated[int, typer.Option(help="Abstracts of the whole corpus.")],
    sample: Annotated[list[Path], typer.Option(help="Files or folders of abstracts like it; at most 2,000 are read.")],
    kb: Annotated[Path, typer.Option(help="Folder made by `kebiolm kb build`.")],
    model: Annotated[str, typer.Option(help="spaCy pipeline with an `ner` (name or folder), or `dictionary`.")],
    workers: Annotated[int, typer.Option(help="Workers to plan for.")] = 16,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer of the shards, for their word pieces.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Predict time, memory and disk of a large annotation from a measured sample."""
    from preprocessing.watch.plan import plan_annotation as run

    run(docs, sample, kb, model, workers=workers, tokenizer=tokenizer, as_json=as_json)


@app.command("transe")
def transe(
    *,
    shards: Annotated[Path, typer.Option(help="Folder made by `kebiolm pack`: the entities that need start vectors.")],
    out: Annotated[Path, typer.Option(help="File to write the start vectors to (.safetensors).")],
    kb: Annotated[Path | None, typer.Option(help="Folder made by `kebiolm kb build`: the triples.")] = None,
    from_text: Annotated[
        Path | None, typer.Option(help="Train nothing; take the vectors of a text file in the authors' layout.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Also write the vectors as text in the authors' layout.")] = None,
    dim: Annotated[int, typer.Option(help="Length of the vectors.")] = 100,
    epochs: Annotated[int, typer.Option(help="Passes over the triples.")] = 30,
    batch_size: Annotated[int, typer.Option(help="True triples per step.")] = 2048,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-3,
    margin: Annotated[float, typer.Option(help="By how much a false triple should be farther than a true one.")] = 1.0,
    negatives: Annotated[int, typer.Option(help="False triples per true one.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of start vectors, order, negatives and the held-out part.")] = 0,
    entities: Annotated[str, typer.Option(help="Triples among all concepts (kb) or the shards' only (shards).")] = "kb",
    missing: Annotated[str, typer.Option(help="Start of entities without triples: zero or gaussian.")] = "zero",
    heldout: Annotated[float, typer.Option(help="Share of the triples held out and ranked afterwards.")] = 0.01,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Train TransE on the knowledge base's triples: start vectors of the entity table."""
    from kebiolm.transe.run import RunSettings, run, run_from_text
    from kebiolm.transe.train import TransESettings

    if (kb is None) == (from_text is None):
        got = "neither" if kb is None else "both"
        raise UserError("--kb, --from-text", got=got, expected="one of them", mend="give --kb to train")
    if from_text is not None:
        run_from_text(from_text, shards, out, missing=missing, seed=seed, overwrite=overwrite)
        return
    training = TransESettings(
        dim=dim,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        margin=margin,
        negatives=negatives,
        seed=seed,
    )
    settings = RunSettings(training=training, entities=entities, missing=missing, heldout=heldout)
    run(kb, shards, out, settings=settings, text=text, device=device, overwrite=overwrite)


@app.command("plan")
def plan(
    config: Annotated[Path, typer.Argument(help="YAML recipe, such as launch/configs/pretrain/paper_v100.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as section.key=value.")] = None,
    *,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs over all nodes; of processes on a CPU.")],
    gpu: Annotated[str, typer.Option(help="v100-16gb, v100-32gb, t4, a100-40gb, a100-80gb, h100, h200, cpu, ...")],
    sequences: Annotated[
        int | None, typer.Option(min=1, help="Training sequences; default: those of the recipe's shards.")
    ] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(help="Price of a GPU for an hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Predict memory, steps, hours and cost of a pretraining run; a run that cannot fit is refused with the mend."""
    from kebiolm.planning.command import plan as run
    from kebiolm.training.config import load_config

    run(
        load_config(config, overrides or []),
        gpus=gpus,
        card_name=gpu,
        sequences=sequences,
        price_per_gpu_hour=price_per_gpu_hour,
        as_json=as_json,
    )


@app.command("pretrain")
def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML recipe, such as launch/configs/pretrain/debug.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as section.key=value.")] = None,
) -> None:
    """Pretrain a model in one process; started again with the same output folder, it resumes.

    On several processes or hosts: launch/pretrain.sh CONFIG [OVERRIDES]... -- --num_gpus 8
    """
    from kebiolm.training.config import load_config
    from kebiolm.training.deepspeed_engine import leave_distributed
    from kebiolm.training.pretrain import pretrain as run
    from kebiolm.training.stop_request import EXIT_STATUS

    is_finished = run(load_config(config, overrides or []))
    leave_distributed()
    if not is_finished:
        raise typer.Exit(EXIT_STATUS)


@app.command("stop")
def stop(
    output: Annotated[Path, typer.Argument(help="Output folder of a pretraining run.")],
) -> None:
    """Ask a pretraining run, wherever it runs, to save a checkpoint and end; started again, it goes on there."""
    from kebiolm.training.stop_request import ask_to_stop

    ask_to_stop(output)


@track_app.command("show")
def track_show(
    output: Annotated[Path, typer.Argument(help="Output folder of `kebiolm pretrain`.")],
) -> None:
    """Print a run's held-out figures before and after, and where its checkpoints and MLflow page are."""
    from kebiolm.tracking.summary import print_summary

    print_summary(output)


@track_app.command("sync")
def track_sync(output: Annotated[Path, typer.Argument(help="OUTPUT folder of a training run.")]) -> None:
    """Send the figures that MLflow did not get while it could not be reached."""
    from kebiolm.tracking.sync import sync_run

    sync_run(output)


@app.command("export")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, or OUTPUT of a run for its newest one.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Turn a training checkpoint into one Hugging Face folder: weights, tokenizer, entity vocabulary, model card."""
    from kebiolm.export.to_hf import export_checkpoint

    export_checkpoint(checkpoint, out, overwrite=overwrite)


@app.command("link")
def link(
    model: Annotated[Path, typer.Argument(help="Folder made by `kebiolm export`.")],
    text: Annotated[str | None, typer.Argument(help="The text to link.")] = None,
    *,
    file: Annotated[Path | None, typer.Option(help="Texts to link, one per line; - for stdin.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the mentions highlighted.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Concepts to show for each mention.")] = 5,
    index: Annotated[Path | None, typer.Option(help="Made by `kebiolm index`: search it, not the table.")] = None,
) -> None:
    """Find the mentions in a text and link them to concepts."""
    from kebiolm.linking.command import link as run

    run(model, text, file=file, html=html, as_json=as_json, top=top, index=index)


@app.command("encode")
def encode(
    model: Annotated[Path, typer.Argument(help="Folder made by `kebiolm export`.")],
    text: Annotated[str | None, typer.Argument(help="The text to encode.")] = None,
    *,
    file: Annotated[
        Path | None, typer.Option(help="Texts to encode, one per line, blank ones too; - for stdin.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write: .npy, .safetensors or .jsonl.")],
    mentions: Annotated[bool, typer.Option("--mentions", help="Vectors of the mentions, not of the texts.")] = False,
    index: Annotated[Path | None, typer.Option(help="Made by `kebiolm index`: search it, not the table.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write a vector for each text, or for each mention with its place, to a file."""
    from kebiolm.linking.command import encode as run

    run(model, text, file=file, out=out, mentions=mentions, index=index, overwrite=overwrite)


@app.command("index")
def index(
    model: Annotated[Path, typer.Argument(help="Folder made by `kebiolm export`.")],
    *,
    out: Annotated[Path, typer.Option(help="File to write; OUT.json says what it is.")],
    kind: Annotated[str, typer.Option(help="hnsw (a graph), ivf (cells; also on GPUs) or flat (exact).")] = "hnsw",
    queries: Annotated[
        Path | None, typer.Option(help="Texts, one per line: their mentions measure the recall.")
    ] = None,
    nlist: Annotated[int | None, typer.Option(help="ivf: cells; default: 4 sqrt(entities).")] = None,
    nprobe: Annotated[int | None, typer.Option(help="ivf: cells searched; default: a sixteenth, at least 8.")] = None,
    m: Annotated[int | None, typer.Option(help="hnsw: edges of an entity; default: 32.")] = None,
    ef_construction: Annotated[
        int | None, typer.Option(help="hnsw: entities in view while building; default: 100.")
    ] = None,
    ef_search: Annotated[int | None, typer.Option(help="hnsw: entities in view while searching; default: 256.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads for building; default: all, but one for hnsw, to be reproducible.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Build a faiss index of the entity table for `--index`, and measure it; pays for millions of entities."""
    from kebiolm.linking.entity_index import IndexSettings
    from kebiolm.linking.index_command import build_index

    settings = IndexSettings(
        kind=kind,
        nlist=nlist,
        nprobe=nprobe,
        m=m,
        ef_construction=ef_construction,
        ef_search=ef_search,
        threads=threads,
    )
    build_index(model, out, settings, queries=queries, overwrite=overwrite)
