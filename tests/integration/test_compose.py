"""docker/: what the files promise (always), and the whole of it on a Docker engine (`pytest -m docker`)."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

DOCKER = REPOSITORY / "docker"
SKIPPED = 77
SERVICES = ["mlflow", "preprocess", "ray-head", "ray-worker"]
RAY_NODES = ["preprocess", "ray-head", "ray-worker"]


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


def test_the_services_are_all_there(compose):
    assert sorted(compose["services"]) == SERVICES
    assert "version" not in compose  # v2 warns of it, v1 reads another syntax with it


@pytest.mark.parametrize("service", SERVICES)
def test_service_has_no_more_rights_than_it_needs(compose, service):
    settings = compose["services"][service]
    user, group = re.fullmatch(r"\$\{KEBIOLM_UID:-(\d+)\}:\$\{KEBIOLM_GID:-(\d+)\}", settings["user"]).groups()
    assert int(user) > 0 and int(group) > 0
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"] and "cap_add" not in settings
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert settings["init"] is True
    assert re.search(r"\d+g\b", settings["mem_limit"])
    assert settings["pids_limit"] > 0
    assert all(mount.startswith("/tmp:size=") for mount in settings["tmpfs"])
    assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & settings.keys()
    assert "stop_grace_period" in settings


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_published_on_this_machine_only(compose, service):
    ports = compose["services"][service].get("ports", [])
    assert [str(port).startswith("127.0.0.1:") for port in ports] == [True] * (service == "mlflow")


@pytest.mark.parametrize("service", RAY_NODES)
def test_ray_asks_for_a_token_and_has_no_way_out(compose, service):
    settings = compose["services"][service]
    assert settings["environment"]["RAY_AUTH_MODE"] == "token"
    assert settings["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert settings["secrets"] == ["ray_token"]
    assert settings["networks"] == ["cluster"]
    assert compose["networks"]["cluster"]["internal"] is True
    assert settings["shm_size"]


def test_dashboard_is_off(compose):
    assert "--include-dashboard=false" in compose["services"]["ray-head"]["command"]


@pytest.mark.parametrize("service", ["mlflow", "ray-head", "ray-worker"])
def test_health_is_asked_of_a_real_api(compose, service):
    _, script = compose["services"][service]["healthcheck"]["test"]
    text = (DOCKER / script).read_text(encoding="utf-8")
    assert "ray.init(" in text or "/api/2.0/mlflow/" in text


def test_workers_and_driver_see_the_same_files(compose):
    assert compose["services"]["ray-worker"]["volumes"] == compose["services"]["preprocess"]["volumes"]
    writable = [mount["target"] for mount in compose["services"]["preprocess"]["volumes"] if not mount.get("read_only")]
    assert writable == ["/data/output"]


def test_secrets_come_from_files_only(compose):
    assert all(list(secret) == ["file"] for secret in compose["secrets"].values())
    for settings in compose["services"].values():
        for name, value in settings.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", name):
                assert name.endswith("_PATH") and value.startswith("/run/secrets/"), name


def test_mlflow_names_its_hosts(compose):
    environment = compose["services"]["mlflow"]["environment"]
    assert "*" not in environment["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"].startswith("mlflow:5000,")
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert "--app-name basic-auth" in (DOCKER / "mlflow_server.sh").read_text(encoding="utf-8")


def test_every_setting_stands_in_the_example():
    used = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text(encoding="utf-8")))
    example = set(re.findall(r"^#?(\w+)=", (DOCKER / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert used <= example
    assert example - used == {"COMPOSE_PROJECT_NAME"}


@pytest.mark.parametrize("name", ["preprocessing", "mlflow"])
def test_image_is_built_in_stages_and_does_not_run_as_root(name):
    lines = (DOCKER / f"{name}.Dockerfile").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("FROM ${PYTHON_IMAGE}") for line in lines) == 2
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and not users[-1].startswith(("0", "root"))
    assert "constraints.txt" in "".join(lines)
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert all((REPOSITORY / file).exists() for file in copied)


def test_secrets_are_made_once_and_for_their_owner_only(tmp_path):
    def make() -> dict[str, str]:
        environment = {**os.environ, "KEBIOLM_UID": str(os.getuid())}
        subprocess.run([DOCKER / "make-secrets.sh", tmp_path / "secrets"], check=True, env=environment)
        return {path.name: path.read_text(encoding="ascii") for path in (tmp_path / "secrets").iterdir()}

    secrets = make()
    assert sorted(secrets) == ["mlflow_admin_password", "mlflow_secret_key", "ray_token"]
    assert all(re.fullmatch("[0-9a-f]{64}", secret) for secret in secrets.values())
    assert len(set(secrets.values())) == 3
    for path in [tmp_path / "secrets", *(tmp_path / "secrets").iterdir()]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert make() == secrets


@pytest.mark.docker
@pytest.mark.timeout(3600)
def test_the_whole_of_it_on_an_engine(request):
    if "docker" not in request.config.option.markexpr:
        pytest.skip("many minutes with a Docker engine: chosen by `pytest -m docker`")
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    script = Path(__file__).with_name("compose.sh")
    done = subprocess.run([script], check=False, capture_output=True, text=True)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
