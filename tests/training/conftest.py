"""Tiny windows and models for the tests of this room."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_training import TINY, Windows


@pytest.fixture
def windows():
    return Windows(400)


@pytest.fixture
def tiny_model():
    return TINY
