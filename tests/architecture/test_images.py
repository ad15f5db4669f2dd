"""Container images are built from pinned parts, and their containers get no more rights than they need."""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from services.exporter.settings import ExporterSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
CONTAINERS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OWN: dict[str, dict[str, Any]] = {
    "finetuneflow-server": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"],
    "finetuneflow": tomllib.loads((ROOT / "sdk" / "pyproject.toml").read_text())["project"],
}
LOWEST_PYTHON = OWN["finetuneflow-server"]["requires-python"].removeprefix(">=")

DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
LINUX = {
    "python_version": LOWEST_PYTHON,
    "python_full_version": f"{LOWEST_PYTHON}.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile: `base` is an image or another stage; `lines` are its instructions."""

    base: str
    lines: list[str]

    def last(self, instruction: str) -> str:
        """Returns the arguments of the last such instruction, also of the stages below; "" if there is none."""
        given = [line.partition(" ")[2] for line in self.lines if line.startswith(instruction + " ")]
        if given:
            return given[-1]
        return STAGES[self.base].last(instruction) if self.base in STAGES else ""


def _stages() -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for line in DOCKERFILE.splitlines():
        if line.startswith("FROM "):
            base, name = line.removeprefix("FROM ").split(" AS ")
            stages[name] = Stage(base, [])
        elif line and not line.startswith("#"):
            list(stages.values())[-1].lines.append(line)
    return stages


STAGES = _stages()


@dataclass(frozen=True)
class Locked:
    """A package of a lock file."""

    version: str
    hashes: list[str]
    required_by: set[str]


def _lock(name: str) -> dict[str, Locked]:
    """Returns the packages that pip installs on Linux."""
    packages = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / "deploy" / "requirements" / f"{name}.txt").read_text()):
        first, _, rest = block.partition(" \\\n")
        if first.startswith("#"):
            continue
        requirement = Requirement(first)
        if requirement.marker is None or requirement.marker.evaluate(LINUX):
            rest = rest.partition("# The following packages were excluded")[0]
            required_by = set(re.findall(r"^    #(?: via)? +(?!-c )(\S+)$", rest, re.MULTILINE)) - {"via"}
            version = str(requirement.specifier).removeprefix("==")
            packages[requirement.name] = Locked(
                version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", rest), required_by
            )
    return packages


def _tested() -> dict[str, str]:
    """Returns the version of each package that the tests run with, as constraints.txt names it."""
    requirements = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}


def _requirements(name: str, extra: str) -> Iterator[Requirement]:
    """Yields what a package needs on Linux for one extra; "" for none."""
    if name in OWN:
        # pyproject.toml, because the metadata of an editable installation may be older.
        project = OWN[name]
        given = project["optional-dependencies"][extra] if extra else project["dependencies"]
    else:
        given = requires(name) or []
    for requirement in map(Requirement, given):
        if requirement.marker is None or requirement.marker.evaluate({**LINUX, "extra": extra}):
            yield requirement


def _required(extras: set[str]) -> set[str]:
    """Returns the names of all packages that the server with these extras needs on Linux, directly or not."""
    found: set[tuple[str, str]] = set()

    def add(name: str, extra: str) -> None:
        if (name, extra) in found:
            return
        found.add((name, extra))
        for requirement in _requirements(name, extra):
            for wanted in ("", *requirement.extras):
                add(canonicalize_name(requirement.name), wanted)

    for extra in ("", *extras):
        add("finetuneflow-server", extra)
    return {name for name, _ in found} - OWN.keys()


def _images() -> Iterator[str]:
    yield from (stage.base for stage in STAGES.values() if stage.base not in STAGES)
    yield from (container["image"] for container in CONTAINERS.values() if "image" in container)


@pytest.mark.parametrize("image", sorted(set(_images())))
def test_images_of_others_are_pinned_by_digest(image: str) -> None:
    """Whoever can push a tag would run code in the next deployment."""
    assert DIGEST.search(image)


def test_images_have_the_python_that_the_tests_run_on() -> None:
    """Users would be the first to run another one. The lowest supported version is the one that is tested."""
    image = STAGES["base"].base
    assert image.startswith(f"python:{LOWEST_PYTHON}-slim@")


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_can_not_gain_rights_or_change_their_image(name: str) -> None:
    """Code that takes over one process would own its container, and get near the host."""
    container = CONTAINERS[name]
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["read_only"] is True
    assert "/tmp" in container["tmpfs"]
    assert not container.keys() & {"privileged", "devices", "pid", "ipc", "userns_mode"}


@pytest.mark.parametrize("name", sorted(CONTAINERS.keys() - {"volumes-owner"}))
def test_processes_are_not_root(name: str) -> None:
    """Root in a container is root on the host after one mistake of the kernel or the container runtime."""
    container = CONTAINERS[name]
    user = container.get("user") or STAGES[container["build"]["target"]].last("USER")
    assert user not in ("", "0", "root")
    assert "cap_add" not in container


def test_only_the_container_that_gives_away_new_volumes_is_root() -> None:
    """It runs one command and ends; it needs that one capability."""
    assert CONTAINERS["volumes-owner"]["cap_add"] == ["CHOWN"]
    assert CONTAINERS["volumes-owner"]["command"][0] == "chown"


def test_each_container_sees_its_own_certificate_only() -> None:
    """A container with the keys of all, or of the authority, could pass for the gateway."""
    mounts = {
        name: [mount for mount in container.get("volumes", ()) if "certificates" in str(mount)]
        for name, container in CONTAINERS.items()
    }
    for name, found in mounts.items():
        if name not in ("volumes-owner", "certificates", "postgres"):
            assert [(mount["volume"]["subpath"], mount["read_only"]) for mount in found] == [(name, True)]
    command = CONTAINERS["certificates"]["command"]
    assert command[:3] == ["python", "-m", "chassis.security.certificates"]


@pytest.mark.parametrize("name", sorted(set(STAGES) & {*CONTAINERS}))
def test_an_image_starts_its_own_process_without_a_shell(name: str) -> None:
    """A shell does not pass on SIGTERM, so a trainer would not save its checkpoint before it is killed."""
    module = {"gateway": "gateway", "deliveries": "gateway.deliveries"}.get(name, f"services.{name}")
    assert CONTAINERS[name]["build"]["target"] == name
    assert json.loads(STAGES[name].last("CMD")) == ["python", "-m", module]


def test_images_install_only_wheels_whose_hash_is_listed_or_that_were_built_from_this_source() -> None:
    """A package that was replaced in a registry would be installed, or its setup.py run."""
    installs = re.findall(r"pip (?:install|wheel) (.*)", DOCKERFILE)
    downloads = [install for install in installs if "--require-hashes" in install]
    assert len(downloads) == 3
    assert all("--no-deps --only-binary :all:" in install for install in downloads)
    assert [install for install in installs if install not in downloads] == [
        "--no-deps --no-build-isolation --wheel-dir /wheels ./sdk .",
        "--no-deps --no-index /wheels/*.whl",
        "--no-deps --no-index /wheels/*.whl",
    ]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("gateway", {"deliveries", "s3"}), ("services", {"probe", "trainer", "evaluator", "exporter", "s3"})],
)
def test_images_have_the_packages_that_the_tests_run_with(lock: str, extras: set[str]) -> None:
    """An image would fail at an import, or run with versions that no test has seen. `make lock` updates the locks."""
    locked, tested, required = _lock(lock), _tested(), _required(extras)
    assert required <= locked.keys(), "run `make lock`: packages are missing"
    assert locked.keys() & tested.keys() <= required, "run `make lock`: packages are no longer needed"
    pinned = {name: package.version for name, package in locked.items() if name in tested}
    assert pinned == {name: tested[name] for name in pinned}, "run `make lock`: constraints.txt has other versions"
    # The tests run torch's CPU build; its CUDA build, which images have, needs more packages.
    untested = locked.keys() - tested.keys()
    assert {parent for name in untested for parent in locked[name].required_by} <= untested | {"torch"}


def test_the_built_in_model_and_the_build_tool_have_the_versions_of_the_tests() -> None:
    """The demo would train another model, or a wheel miss files."""
    tested = _tested()
    for name, package in {**_lock("model"), **_lock("build")}.items():
        assert package.version == tested[name], "run `make lock`"


@pytest.mark.parametrize("lock", ["gateway", "services", "model", "build"])
def test_every_locked_package_has_hashes(lock: str) -> None:
    """pip would refuse to build the image."""
    assert all(package.hashes for package in _lock(lock).values())


def test_signing_key_of_packages_is_a_secret_of_the_exporter_alone() -> None:
    """Any other container that reads the operator's key could sign packages in its name."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    (secret,) = compose["secrets"]
    assert compose["secrets"][secret]["file"] == "${SIGNING_KEY:-/dev/null}"
    assert [name for name, container in CONTAINERS.items() if container.get("secrets")] == ["exporter"]
    given = CONTAINERS["exporter"]["environment"]["FTF_EXPORTER_SIGNING_KEY_FILE"]
    assert given == f"${{SIGNING_KEY:+/run/secrets/{secret}}}"


def test_exporter_starts_without_a_signing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SIGNING_KEY, docker-compose.yml sets the variable to nothing."""
    monkeypatch.setenv("FTF_EXPORTER_SIGNING_KEY_FILE", "")
    assert ExporterSettings().signing_key is None
