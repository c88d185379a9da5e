"""Trains, evaluates and exports: see `g16net/cli/main.py`, `--help` and the README."""

from g16net.cli.main import main

if __name__ == "__main__":
    main()
