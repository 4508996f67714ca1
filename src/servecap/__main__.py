"""`python -m servecap`."""

from servecap.cli import main

main()
