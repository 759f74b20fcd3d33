"""The `kebiolm` command: wiring only; every command imports its work when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kebiolm.console import exit_with_user_error
from kebiolm.errors import UserError

app = typer.Typer(
    name="kebiolm",
    help="KeBioLM: from UMLS files and PubMed abstracts to a knowledge-enhanced biomedical BERT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; a user's mistake ends in one line and status 2, never in a traceback."""
    try:
        app()
    except UserError as error:
        exit_with_user_error(error)


kb_app = typer.Typer(help="Build a knowledge base from UMLS files.", no_args_is_help=True)
shards_app = typer.Typer(help="Look into packed training shards.", no_args_is_help=True)
app.add_typer(kb_app, name="kb")
app.add_typer(shards_app, name="shards")

# Commands, in the order in which a newcomer runs them: kb build, sample, annotate, annotate-eval, pack, shards show,
# transe, pretrain, export, link.
