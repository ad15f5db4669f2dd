"""`python -m finetuneflow.cli`: `ftf`, where the script is not on the path."""

from finetuneflow.cli import main

main()
