"""`python -m netgrow_cli`."""

from netgrow_cli.cli import process

try:
    process()
finally:
    # Python remembers an interrupt that went through code compiled from text (dataclasses do that on import) and
    # would end by the signal, though it was handled and the exit code is 130; running such code once forgets it.
    exec("")
