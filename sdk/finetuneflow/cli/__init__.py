"""The command `ftf`. Needs the extra: `pip install "finetuneflow[cli]"`."""

import os
import sys


def main() -> None:
    """Entry point of the script `ftf`."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        sys.stderr.write('The command `ftf` needs typer and rich: pip install "finetuneflow[cli]"\n')
        sys.exit(2)
    # What gRPC's core says of a connection that went away would fall into the middle of a display.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from finetuneflow.cli.app import build_app
    from finetuneflow.cli.console import escape_unencodable

    for stream in (sys.stdout, sys.stderr):
        escape_unencodable(stream)
    build_app()()
