"""`ftf models path`, which needs no server."""

import json
import subprocess
import sys
from pathlib import Path

from tests.tiny_models import make_tiny_model


def test_path_of_configured_model_is_found(tmp_path: Path) -> None:
    """FTF_MODELS configures the services; the command must print the path of the same model."""
    folder = make_tiny_model(tmp_path / "tiny")
    run = subprocess.run(
        [sys.executable, "-m", "finetuneflow.cli", "models", "path", "mine", "--home", str(tmp_path / "home")],
        env={"FTF_MODELS": json.dumps({"mine": str(folder)}), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(folder)
