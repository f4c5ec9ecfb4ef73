"""Great Expectations itself: the file context and one validation."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from contracts.errors import InputError
from contracts.files import read_json
from contracts.settings import settings
from expectations import data_docs

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.data_context import EphemeralDataContext

SOURCE = "delta_tables"


@contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Let these modules look as if they were not installed, unless they are in use already."""
    blocked = [module for module in modules if module not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in blocked:
            del sys.modules[module]


def open_context() -> EphemeralDataContext:
    """A context of this process, whose results stay in `home_dir/great_expectations` and Data Docs in `reports_dir/data_docs`.

    Everything in it is derived, so what a killed run left torn is dropped.
    """
    # Read by the library when it is imported; it must not call home from anybody's shop.
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    with _hidden("pyspark"):  # a fifth of the time that the import takes, and nothing here needs it
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            FilesystemStoreBackendDefaults,
            ProgressBarsConfig,
        )

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    root = settings().home_dir / "great_expectations"
    for path in root.rglob("*.json"):
        try:
            read_json(path)
        except InputError:
            path.unlink()
    stores = FilesystemStoreBackendDefaults(root)
    stores.stores |= {
        name: {**stores.stores[name], "store_backend": {"class_name": "InMemoryStoreBackend"}}
        for name in (stores.checkpoint_store_name, stores.validation_definition_store_name)
    }
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=stores,
            data_docs_sites={data_docs.SITE: data_docs.site()},
            progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
        ),
    )
    context.data_sources.add_pandas(SOURCE)
    return context


def validate(
    context: EphemeralDataContext, suite: gx.ExpectationSuite, frame: pd.DataFrame
) -> ExpectationSuiteValidationResult:
    """Hold a frame against a suite; both are kept under the suite's name."""
    import great_expectations as gx

    asset = context.data_sources.get(SOURCE).add_dataframe_asset(suite.name)
    batches = asset.add_batch_definition_whole_dataframe("checked_rows")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=suite.name, data=batches, suite=context.suites.add_or_update(suite))
    )
    return definition.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": 3},
    )
