"""A tiny shop whose answers are computed by hand."""

from __future__ import annotations

import pytest

from tests.training.tiny import tiny_shop
from training.data import Shop


@pytest.fixture(scope="module")
def shop() -> Shop:
    return tiny_shop()
