"""What a process looks after on its host before it joins the others."""

from __future__ import annotations

from collections.abc import MutableMapping

from rich.markup import escape

from kebiolm.console import error_console
from kebiolm.training.network import choose_interface
from kebiolm.training.stale_locks import extension_cache, remove_stale_locks


def prepare_host(environment: MutableMapping[str, str]) -> None:
    """Choose the network interface, and on the first process of each host mend the cache of extensions.

    To join the process group waits for all, so no process builds before the locks of every host are looked at.

    Args:
        environment: the launcher's variables; the interface is set in it.

    Raises:
        UserError: the first host's address does not serve.
    """
    choose_interface(environment, _say)
    if environment.get("LOCAL_RANK", "0") == "0":
        remove_stale_locks(extension_cache(), _say)


def _say(line: str) -> None:
    error_console.print(f"[yellow]{escape(line)}[/]")
