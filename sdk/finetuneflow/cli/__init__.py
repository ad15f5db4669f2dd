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
    # gRPC's core logs lost connections to stderr, into the middle of a live display.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from finetuneflow.cli.app import build_app
    from finetuneflow.cli.console import escape_unencodable

    for stream in (sys.stdout, sys.stderr):
        escape_unencodable(stream)
    build_app()()
