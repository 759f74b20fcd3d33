"""MLflow's address: from the environment or the recipe, with an absolute path, and never with a password in it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from kebiolm.errors import UserError

ENVIRONMENT = "MLFLOW_TRACKING_URI"
"""Variable of the environment that wins over the recipe's address."""

SQLITE = "sqlite:///"

_SECRETS_OF_A_QUERY = ("password", "passwd", "token")
_MEND = (
    "put them into ~/.mlflow/credentials or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
    "(a database's password: into its own file, such as ~/.pgpass)"
)


def choose_tracking_uri(of_recipe: str | None) -> str | None:
    """The address to use: the environment's, else the recipe's; None where the recipe switches MLflow off.

    Raises:
        UserError: there is a password in it; the message does not repeat it.
    """
    if of_recipe is None:
        return None
    return tracking_uri_of_environment() or _checked(of_recipe, "tracking.tracking_uri")


def tracking_uri_of_environment() -> str | None:
    """The environment's address, None where it names none.

    Raises:
        UserError: there is a password in it; the message does not repeat it.
    """
    uri = os.environ.get(ENVIRONMENT)
    return _checked(uri, ENVIRONMENT) if uri else None


def _checked(uri: str, where: str) -> str:
    if _holds_a_secret(uri):
        expected = "an address without them, because it is published with the run's settings"
        raise UserError(where, got="an address with a name or password in it", expected=expected, mend=_MEND)
    return _with_absolute_path(uri)


def _holds_a_secret(uri: str) -> bool:
    """Whether an address has a password in it; for a server, a user's name counts too, because tokens are given so."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # no address at all; MLflow will say so
        return False
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
        return True
    return any(name in _SECRETS_OF_A_QUERY for name in parse_qs(parts.query))


def _with_absolute_path(uri: str) -> str:
    """A relative sqlite path would mean another file when `kebiolm track sync` is called from another folder."""
    if not uri.startswith(SQLITE):
        return uri
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).resolve())
