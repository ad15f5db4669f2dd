"""The command `ftf`. Needs the extra: `pip install "finetuneflow[cli]"`."""

import sys


def main() -> None:
    """Entry point of the script `ftf`."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        sys.stderr.write('The command `ftf` needs typer and rich: pip install "finetuneflow[cli]"\n')
        sys.exit(2)
    from finetuneflow.cli.app import build_app

    build_app()()
