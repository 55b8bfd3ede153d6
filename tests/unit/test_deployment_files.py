"""The container files are valid, closed to the network by default, and name only commands and variables that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml
from pydantic_settings import BaseSettings

from app.cli.main import cli
from app.cli.settings import UpSettings
from app.settings import ApiSettings
from tasks.settings import StoreSettings
from tests.support.front_fakes import FakeBackend, front_client
from workers.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name in SERVICES if name != "valkey"]
KNOWN_VARIABLES = {
    f"KEEPWARM_{name.upper()}"
    for settings in (UpSettings, ApiSettings, StoreSettings, WorkerSettings)
    for name in settings.model_fields
} | {"KEEPWARM_URL"}


def test_every_part_of_keepwarm_is_a_service():
    assert set(SERVICES) == {"valkey", "api", "batcher", "controller", "worker-cpu", "worker-gpu", "flower"}
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles["worker-cpu"] == ["cpu"]
    assert profiles["worker-gpu"] == ["gpu"]
    assert profiles["valkey"] is profiles["api"] is profiles["controller"] is None


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_a_service_is_one_of_the_command_line(name: str):
    commands = set(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]
    assert SERVICES[name]["command"][0] in commands


@pytest.mark.parametrize("name", OURS)
def test_the_environment_of_a_service_is_read_by_some_settings(name: str):
    assert set(SERVICES[name]["environment"]) <= KNOWN_VARIABLES
    assert SERVICES[name]["environment"]["KEEPWARM_REDIS_URL"] == "redis://valkey:6379/0"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("api", (StoreSettings, ApiSettings)),
        ("batcher", (StoreSettings, ApiSettings)),
        ("controller", (StoreSettings,)),
        ("worker-cpu", (StoreSettings, WorkerSettings)),
        ("worker-gpu", (StoreSettings, WorkerSettings)),
    ],
)
def test_every_setting_that_a_service_reads_reaches_it(name: str, read: tuple[type[BaseSettings], ...]):
    """What is set in the shell or in .env and not named here would be dropped in silence."""
    settings = {f"KEEPWARM_{field.upper()}" for cls in read for field in cls.model_fields}
    of_the_image = {"KEEPWARM_HOME", "KEEPWARM_MODELS_DIR"}
    of_a_listener = {"KEEPWARM_ALLOW_OPEN", "KEEPWARM_HOST", "KEEPWARM_PORT", "KEEPWARM_ALLOWED_HOSTS"}
    of_gpus = {f"KEEPWARM_{field}" for field in ("GPU_LAYERS", "MAIN_GPU", "SPLIT_MODE", "TENSOR_SPLIT")}
    without = of_the_image | (of_a_listener if name != "api" else set()) | (of_gpus if name == "worker-cpu" else set())
    assert settings - without <= set(SERVICES[name]["environment"])


def test_the_secret_of_webhooks_reaches_only_those_who_sign_or_check_it():
    assert {name for name in OURS if "KEEPWARM_WEBHOOK_SECRET" in SERVICES[name]["environment"]} == {"api", "batcher"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_patient_health_check_and_comes_back_by_itself(name: str):
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert re.fullmatch(r"\d+s", service["healthcheck"]["start_period"])
    assert service["restart"] in {"unless-stopped", "on-failure:5"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_waits_for_the_store_and_has_no_privileges(name: str):
    service = SERVICES[name]
    assert service["depends_on"]["valkey"]["condition"] == "service_healthy"
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True


def test_ports_are_published_on_loopback_only():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("shell", ["", "front.example"])
def test_the_published_front_answers_to_its_own_names_only(shell: str):
    """A page that binds its name to 127.0.0.1 reaches the published port, whatever the front listens on inside."""
    environment = SERVICES["api"]["environment"]
    names = environment["KEEPWARM_ALLOWED_HOSTS"].replace("${KEEPWARM_ALLOWED_HOSTS:-}", shell)
    own = {"api:8000", "localhost:8000", "127.0.0.1:8000", *([shell] if shell else [])}
    with front_client(FakeBackend(), host=environment["KEEPWARM_HOST"], allow_open=True, allowed_hosts=names) as client:
        statuses = {host: client.get("/livez", headers={"host": host}).status_code for host in own | {"evil.example"}}
    assert statuses == dict.fromkeys(own, 200) | {"evil.example": 421}


def test_the_store_keeps_its_log_in_a_volume_and_never_evicts():
    command = SERVICES["valkey"]["command"]
    settings = dict(zip(command[1::2], command[2::2], strict=True))
    assert settings["--appendonly"] == "yes"
    assert settings["--maxmemory-policy"] == "noeviction"
    assert SERVICES["valkey"]["volumes"] == ["store:/data"]
    assert set(COMPOSE["volumes"]) == {"store", "front-home", "worker-home"}


def test_the_gpu_worker_reserves_a_gpu():
    device = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]
    assert device["capabilities"] == ["gpu"]
    assert "-DGGML_CUDA=on" in SERVICES["worker-gpu"]["build"]["args"]["CMAKE_ARGS"]


def test_the_image_runs_as_nobody_special_and_copies_only_what_exists():
    dockerfile = (ROOT / "Dockerfile").read_text()
    run_stage = dockerfile.split("FROM ${RUN_IMAGE}")[1]
    assert re.search(r"^USER keepwarm$", run_stage, re.MULTILINE)
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert f"!{source}" in allowed
            assert (ROOT / source).exists()


def test_build_arguments_of_the_compose_file_exist_in_the_dockerfile():
    arguments = set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert set(SERVICES["worker-gpu"]["build"]["args"]) <= arguments
