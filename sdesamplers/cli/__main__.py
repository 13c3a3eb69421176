"""`python -m sdesamplers.cli`."""

from . import main

main()
