"""One real MLflow server for all tests of tracking, and proxies in front of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tracking.proxy import Proxy

SECONDS_TO_START = 120


@pytest.fixture(scope="session")
def server_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of an MLflow server with a database and an artifact folder of its own."""
    with running_server(tmp_path_factory.mktemp("mlflow")) as port:
        yield port


@pytest.fixture
def proxy(server_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy of this test's own in front of the server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    proxy = Proxy(server_port)
    yield proxy
    proxy.go()


@contextmanager
def running_server(folder: Path) -> Iterator[int]:
    """A real MLflow server on this machine, with its files in `folder`; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _answers(port):
            assert time.monotonic() < deadline and server.poll() is None, "the MLflow server did not start"
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
