"""Weights files of other libraries: one file a library, and which of them a file is. May import config and models."""
