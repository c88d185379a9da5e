"""Trains, evaluates and exports: see `g16net/cli.py`, `--help` and the README."""

from g16net.cli import main

if __name__ == "__main__":
    main()
