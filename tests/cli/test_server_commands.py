"""`ftf up` comes from the server distribution; without it the command says what to install."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import typer
from typer.testing import CliRunner

from finetuneflow.cli import server_commands
from finetuneflow.cli.app import build_app


def _register(app: typer.Typer) -> None:
    @app.command()
    def up() -> None:
        typer.echo("it is up")


def test_what_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_commands, "entry_points", lambda group: [])
    for command in (["up", "--port", "1"], ["demo"], ["models", "path", "smollm2-135m"]):
        result = CliRunner().invoke(build_app(), command)
        assert result.exit_code == 2
        assert 'pip install "finetuneflow-server[standalone]"' in result.stderr


def test_an_installed_command_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    here = EntryPoint("server", f"{__name__}:_register", server_commands.GROUP)
    broken = EntryPoint("other", "not_installed.commands:register", server_commands.GROUP)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[_register.__module__])
    monkeypatch.setattr(server_commands, "entry_points", lambda group: [here, broken])
    assert CliRunner().invoke(build_app(), ["up"]).stdout == "it is up\n"
    result = CliRunner().invoke(build_app(), ["demo"])
    assert result.exit_code == 2
    assert "not_installed" in result.stderr


def test_the_command_tree_imports_nothing_heavy() -> None:
    """`ftf --help` and completion wait for every import."""
    code = "import sys; from finetuneflow.cli.app import build_app; build_app(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "numpy", "pyarrow", "datasets", "transformers", "torch", "sqlalchemy", "services", "chassis"}
    assert "standalone.local_probe" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


def test_the_script_starts() -> None:
    command = [sys.executable, "-m", "finetuneflow.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ftf ")


def test_the_script_without_its_extra_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from finetuneflow.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert 'pip install "finetuneflow[cli]"' in result.stderr
