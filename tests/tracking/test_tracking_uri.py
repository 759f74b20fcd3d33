"""An address with a password in it is refused before it is written anywhere, and not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from kebiolm.errors import UserError
from kebiolm.tracking.tracking_uri import choose_tracking_uri
from kebiolm.training.config import load_config
from tests.tracking.runs import describe
from tests.training.launch import DEBUG_RECIPE

SECRETS = [
    "https://me:secret@host",
    "https://secret@host:5000/path",
    "postgresql://me:secret@host/mlflow",
    "postgresql://host/mlflow?user=me&password=secret",
]
CLEAN = ["http://host:5000", "sqlite:////tmp/a@b:c/mlflow.db", "postgresql://me@host/mlflow", "databricks"]


@pytest.mark.parametrize("uri", SECRETS)
@pytest.mark.parametrize("is_of_environment", [True, False])
def test_password_is_refused_and_not_repeated(
    uri: str, is_of_environment: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    overrides = [] if is_of_environment else [f"tracking.tracking_uri={uri}"]
    if is_of_environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"tracking_uri|MLFLOW_TRACKING_URI") as caught:
        load_config(DEBUG_RECIPE, overrides)
    assert "secret" not in str(caught.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value)
    with pytest.raises(UserError):
        describe(tmp_path, uri)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", CLEAN)
def test_other_addresses_are_taken_as_they_are(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert choose_tracking_uri(uri) == uri


def test_environment_wins_over_the_recipe_unless_that_switches_mlflow_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    assert choose_tracking_uri("http://other") == "http://host"
    assert choose_tracking_uri(None) is None
