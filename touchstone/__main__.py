"""`python -m touchstone` is the command line, too."""

from touchstone.cli import main

main()
