"""`python -m marketfeed`: the command line."""

from marketfeed.cli import main

if __name__ == "__main__":
    main()
