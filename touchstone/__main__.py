"""`python -m touchstone` is the command line, too."""

from touchstone.cli.app import main

main()
