"""Dockerfiles and docker-compose.yml: linted, and all their names checked against the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from touchstone.settings import Settings
from touchstone.supervisor import apis, processes

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
OWN = ("api", "worker", "worker-gpu")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    composition = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services: dict[str, Any] = composition["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in composition["volumes"]
    return services


def read_dockerfile(service: dict[str, Any]) -> str:
    return (ROOT / service["build"]["dockerfile"]).read_text()


def find_started_modules(text: str) -> list[str]:
    return re.findall(r'"-m", "([\w.]+)"', text)


def find_setting_names(text: str) -> set[str]:
    return set(re.findall(r"TOUCHSTONE_([A-Z_]+)", text))


def exists(module: str) -> bool:
    """Whether `python -m module` finds something to run."""
    spec = importlib.util.find_spec(module)
    return spec is not None and (
        not spec.submodule_search_locations or importlib.util.find_spec(f"{module}.__main__") is not None
    )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_the_linter(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_start_existing_modules_with_existing_settings_as_non_root(path: Path) -> None:
    text = path.read_text()
    modules = find_started_modules(text)
    assert modules
    assert all(exists(module) for module in modules), modules
    assert {name.lower() for name in find_setting_names(text)} <= set(Settings.model_fields)
    assert "HEALTHCHECK" in text
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE), "runs without root rights"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_copy_only_files_of_the_build_context(path: Path) -> None:
    context = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert source in context
            assert (ROOT / source).exists()


def test_compose_starts_the_same_commands_as_the_dockerfiles(services: dict[str, Any]) -> None:
    assert set(services) == {*OWN, "valkey"}
    for name in OWN:
        command = services[name]["command"]
        module = "service" if name == "api" else "workers"
        assert command == ["python", "-m", module]
        assert f'CMD ["python", "-m", "{module}"]' in read_dockerfile(services[name])


def test_compose_uses_only_existing_settings(services: dict[str, Any]) -> None:
    for name in OWN:
        environment = services[name]["environment"]
        settings = {key.removeprefix("TOUCHSTONE_").lower(): value for key, value in environment.items()}
        assert set(settings) <= set(Settings.model_fields)
        parsed = Settings.model_validate(settings)
        assert parsed.redis_url == "redis://valkey:6379/0"
        assert f"data:{parsed.home}" in services[name]["volumes"], "all share the blobs"


def test_compose_services_have_health_checks_and_wait_for_valkey(services: dict[str, Any]) -> None:
    assert "healthcheck" in services["valkey"]
    for name in OWN:
        assert "HEALTHCHECK" in read_dockerfile(services[name])
        assert services[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}
        assert services[name]["restart"] == "unless-stopped"


def test_api_image_health_check_matches_that_of_touchstone_up(services: dict[str, Any]) -> None:
    """Its interval, timeout and retries equal those of `touchstone up`, unless an operator changes them."""
    match = re.search(r"HEALTHCHECK (.+) \\", read_dockerfile(services["api"]))
    assert match
    options = dict(option.removeprefix("--").split("=") for option in match[1].split())
    assert float(options["interval"].removesuffix("s")) == processes.HEALTH_CHECK_SECONDS
    assert float(options["timeout"].removesuffix("s")) == apis.ANSWER_SECONDS
    assert int(options["retries"]) == processes.MAX_TIMEOUTS
    assert "healthcheck" not in services["api"], "the health check of the image applies"


def test_compose_publishes_only_the_api_and_only_on_loopback(services: dict[str, Any]) -> None:
    port = services["api"]["environment"]["TOUCHSTONE_PORT"]
    assert services["api"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert not any("ports" in service for name, service in services.items() if name != "api")


def test_compose_gpu_worker_reserves_one_gpu(services: dict[str, Any]) -> None:
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"], len(device["device_ids"])) == ("nvidia", ["gpu"], 1)
    assert services["worker-gpu"]["profiles"] == ["gpu"]
    arguments = set(services["worker-gpu"]["build"]["args"])
    assert arguments <= set(re.findall(r"^ARG (\w+)", read_dockerfile(services["worker-gpu"]), re.MULTILINE))


def test_compose_valkey_syncs_to_disk_before_it_answers(services: dict[str, Any]) -> None:
    command = services["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--hash-max-listpack-value": "4096",
        "--stream-node-max-bytes": "512",
    }
    assert "ledger:/data" in services["valkey"]["volumes"]


def test_api_imports_without_the_packages_its_image_leaves_out() -> None:
    """The API must not import packages that its image lacks."""
    with (ROOT / "pyproject.toml").open("rb") as project:
        printed = subprocess.run(
            [sys.executable, ROOT / "docker" / "requirements.py"],
            stdin=project,
            capture_output=True,
            check=True,
        ).stdout.decode()
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    left_out = [line for line in required if line not in printed.splitlines()]
    assert [re.split(r"\W", line)[0] for line in left_out] == [
        "efficientnet",
        "efficientnet",
        "safetensors",
        "torch",
    ]
    program = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'efficientnet_lite_pytorch'): sys.modules[name] = None\n"
        "import service.__main__, service.app\n"
        "from touchstone.models.zoo import manifests\n"
        "assert manifests()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_package_data_covers_all_files_that_are_not_python() -> None:
    """An image has the installed package, which contains only the data files that `package-data` names."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("touchstone", "service", "workers"):
        files = {
            path
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
        }
        named = {path for pattern in patterns.get(package, ()) for path in (ROOT / package).glob(pattern)}
        assert files <= named
