"""`python -m netgrow_cli`."""

from netgrow_cli.cli import main

main()
