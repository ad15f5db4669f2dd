"""The distribution `finetuneflow`: its dependencies, the cost of its import, and the content of its wheel."""

import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

SDK = Path(__file__).parents[2] / "sdk"


def test_sdk_depends_only_on_grpc_and_protobuf() -> None:
    project = tomllib.loads((SDK / "pyproject.toml").read_text())["project"]
    names = {requirement.split(">")[0] for requirement in project["dependencies"]}
    assert names == {"grpcio", "protobuf", "googleapis-common-protos"}
    assert {requirement.split(">")[0] for requirement in project["optional-dependencies"]["cli"]} == {
        "PyYAML",
        "cryptography",
        "typer",
        "rich",
    }


def test_import_loads_neither_command_line_nor_heavy_packages() -> None:
    code = (
        "import sys, finetuneflow;"
        "heavy = {'typer', 'rich', 'click', 'yaml', 'numpy', 'torch', 'pydantic', 'google.protobuf.json_format'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_wheel_contains_package_types_and_command(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=SDK, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {"finetuneflow/py.typed", "finetuneflow/client.py", "finetuneflow/v1/event_pb2.pyi"} <= set(names)
    assert "ftf = finetuneflow.cli:main" in scripts
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(required) == 3
