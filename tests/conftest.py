"""Shared settings: quiet TensorFlow, CPU only."""

import os
import sys

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(autouse=True)
def fresh_flags():
    """The command line is one for the whole process: what a test parsed is forgotten after it."""
    yield
    if "g16net.cli" in sys.modules:
        sys.modules["g16net.cli"].FLAGS.unparse_flags()


@pytest.fixture(autouse=True)
def any_operations():
    """Deterministic operations, once asked for, hold for the process, and TensorFlow's way back is not public."""
    yield
    config = sys.modules.get("tensorflow.python.framework.config")
    if hasattr(config, "disable_op_determinism"):
        config.disable_op_determinism()


@pytest.fixture(scope="module")
def three_stages():
    """Networks of the first three stages: what a run does with a network does not depend on its depth."""
    from g16net.models import architecture

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture, "BLOCKS", architecture.BLOCKS[:3])
        yield
