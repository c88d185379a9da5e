"""Trains, fine-tunes, evaluates and predicts. May import all below it: run, ipu, report, and what these import."""
