"""`python -m sdesamplers`: the command line."""

from .cli import main

main()
