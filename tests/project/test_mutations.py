"""The table of mutations fits the code: each piece of text that is to be broken stands where it says, once."""

import os

import pytest
from helpers import ROOT

from tools import mutations

TABLE = mutations.read()
pytestmark = pytest.mark.once


@pytest.mark.parametrize("mutation", TABLE, ids=lambda one: one.name)
def test_it_can_be_made(mutation):
    with open(os.path.join(ROOT, mutation.file), encoding="utf-8") as file:
        assert file.read().count(mutation.old) == 1
    assert mutation.old != mutation.new
    for name in mutation.tests.split():
        assert mutations.path_of(name)


def test_there_are_enough_of_different_names():
    assert len({one.name for one in TABLE}) == len(TABLE) >= 40
