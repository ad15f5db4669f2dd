"""`python -m finetuneflow.cli`, the same as `ftf` if the script is not on the path."""

from finetuneflow.cli import main

main()
