"""`python -m sharedlog.cli` is the `sharedlog` command."""

from sharedlog.cli import main

if __name__ == "__main__":
    main()
