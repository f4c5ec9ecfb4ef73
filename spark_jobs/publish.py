"""Bring `recommendations` to the sinks that the settings name, where applications look them up. Needs no Spark.

    python -m spark_jobs.publish

Exit status 99 when each sink has them already, or none is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from contracts.errors import reported
from contracts.names import NOTHING_TO_DO
from contracts.tables import RECOMMENDATIONS
from spark_jobs import pending, storage
from spark_jobs.session import say
from spark_jobs.sinks import COLUMNS, Row


def arg_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def rows() -> Iterator[Row]:
    """All recommendations, a few at a time."""
    opened = storage.open_table(RECOMMENDATIONS)
    if opened is not None:
        for batch in opened.to_pyarrow_dataset().to_batches(columns=[*COLUMNS]):
            yield from batch.to_pylist()


@storage.writing()
def main() -> int:
    """Publish to each sink that lacks something; the exit status.

    Raises:
        InputError: a sink does not answer, or refuses them.
    """
    todo = pending.publish()
    for sink, state in todo.items():
        sink.publish(rows())
        published = storage.recorded(RECOMMENDATIONS, pending.PUBLISHED).get(pending.PUBLISHED, {})
        storage.commit_metadata(RECOMMENDATIONS, {pending.PUBLISHED: published | {sink.name: state}})
        say(f"{sink.name}: {storage.total_rows(RECOMMENDATIONS):,} users")
    return 0 if todo else NOTHING_TO_DO


if __name__ == "__main__":
    arg_parser().parse_args()
    with reported():
        sys.exit(main())
