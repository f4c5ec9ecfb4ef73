"""One broker for all tests of the folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.spark_jobs.sources.brokers import Kafka, running_kafka


@pytest.fixture(scope="session")
def broker(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    with running_kafka(spark, tmp_path_factory.mktemp("kafka")) as started:
        yield started
