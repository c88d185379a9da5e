"""What a run is: its fields, the paper's recipe, the experiments that change it. Imports no TensorFlow.

A run is a locked `ml_collections.ConfigDict` made in four steps: `default()`, the experiment file's changes, the
command line's `--config.key=value` (`override`), and `recipe.resolve`, which checks it and fills in what is derived.
"""

from g16net.config.fields import (
    FIELDS,
    Field,
    check_fields,
    default,
    differences,
    example,
    field_of,
    load,
    override,
    parse_arg,
    parse_value,
    save,
)
from g16net.errors import ConfigError, RunError, UserError

__all__ = [
    "FIELDS",
    "ConfigError",
    "Field",
    "RunError",
    "UserError",
    "check_fields",
    "default",
    "differences",
    "example",
    "field_of",
    "load",
    "override",
    "parse_arg",
    "parse_value",
    "save",
]
