"""What g16net raises for a user to read, and how a message offers the nearest valid word."""

import difflib
from typing import Iterable


class UserError(ValueError):
    """A mistake that the user can fix: the message names the thing, its value and the remedy."""


class RunError(RuntimeError):
    """What ended a run that was under way: the message says what is kept and how to go on."""


class ConfigError(UserError):
    """A wrong key, type, value or combination in a run's configuration."""


def suggest(word: str, words: Iterable[str]) -> str:
    """` Did you mean 'x'?` for a near miss, otherwise the whole choice."""
    words = sorted(words)
    by_lower = {w.lower(): w for w in words}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean {by_lower[near[0]]!r}?" if near else "Valid: " + ", ".join(words)
