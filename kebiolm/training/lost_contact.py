"""One line in place of a traceback where a process hears nothing of the others any more."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape

from kebiolm.console import error_console

EXIT_STATUS = 1

# gloo raises RuntimeError with these words; NCCL and the rendezvous raise subclasses of torch.distributed.DistError.
_WORDS_OF_GLOO = re.compile(
    r"gloo.*(?P<cause>Timed out waiting \d+ms|Connection closed by peer|Connection reset by peer|"
    r"Broken pipe|No route to host|Network is unreachable|Host is unreachable|Connection timed out)",
    re.DOTALL,
)


@contextmanager
def exit_on_lost_contact() -> Iterator[None]:
    """End this process with one line and `EXIT_STATUS` if a host, its network or another process of the job is gone.

    With gloo every process says so itself: which one notices first depends on what was lost. How long that takes is
    DEEPSPEED_TIMEOUT, in minutes (10 by default). With NCCL the collectives run in the background, and its watchdog
    normally ends the process with words of its own before an error comes here.
    """
    try:
        yield
    except RuntimeError as error:
        cause = lost_contact(error)
        if cause is None:
            raise
        error_console.print(
            f"[bold red]error:[/] {escape(socket.gethostname())}, process {os.environ.get('RANK', '0')}: lost contact "
            f"with the others ({escape(cause)}): a host, its network or a process is gone, see the first error of the "
            "other hosts; the same command goes on from the last checkpoint"
        )
        sys.exit(EXIT_STATUS)


def lost_contact(error: RuntimeError) -> str | None:
    """The cause in the library's words, if `error` means that another process cannot be reached; else None."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    match = _WORDS_OF_GLOO.search(str(error))
    return match["cause"] if match else None
