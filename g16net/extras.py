"""Packages that only some commands need, with the command that installs them where they are missing."""

import importlib
import importlib.util
from typing import Any

from g16net.errors import UserError


def need(module: str, extra: str, purpose: str) -> Any:
    """Imports and returns `module`; UserError with the pip command where it is not installed.

    Args:
        module: as imported, such as "onnxruntime".
        extra: the extra of this package that brings it.
        purpose: what needs it, for the message.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package {module.split('.')[0]!r} ({error}); install it: pip install 'g16net[{extra}]'"
        ) from error


def find(module: str, extra: str, purpose: str) -> Any:
    """As `need`, for a package that another process imports: TensorFlow and torch do not share one well."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{purpose} needs the package {module!r}; install it: pip install 'g16net[{extra}]'")
