"""A short run of the fuzzer; the long one is `python tools/fuzz.py --cases=12000`."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.once
def test_mutated_input_ends_as_promised():
    command = [sys.executable, os.path.join("tools", "fuzz.py"), "--cases=500", "--seed=7"]
    environment = dict(os.environ, PYTHONPATH=ROOT)
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert result.returncode == 0, result.stdout.decode() + result.stderr.decode()[-2000:]
