"""Trains, fine-tunes, evaluates and predicts. May import all below it: run, ipu, report, and what these import."""

from g16net.compat import tensorflow_only  # noqa: F401  says first what is missing
