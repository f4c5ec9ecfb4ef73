"""Great Expectations itself: the file context and one validation."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from contracts.settings import settings
from expectations import data_docs

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.data_context import FileDataContext


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


def open_context() -> FileDataContext:
    """The file context in `home_dir/great_expectations`, with its Data Docs in `reports_dir/data_docs`.

    Everything in it is derived, so one that a killed run left broken is made anew.
    """
    # Read by the library when it is imported; it must not call home from anybody's shop.
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    with _hidden("pyspark"):  # a fifth of the time that the import takes, and nothing here needs it
        import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    root = settings().home_dir / "great_expectations"
    try:
        context = gx.get_context(mode="file", context_root_dir=root)
    except Exception:  # whatever is wrong with it, the cure is the same
        shutil.rmtree(root, ignore_errors=True)
        context = gx.get_context(mode="file", context_root_dir=root)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    site = data_docs.site()
    if context.variables.data_docs_sites.get(data_docs.SITE) != site:
        context.update_data_docs_site(data_docs.SITE, site)
    return context


def validate(
    context: FileDataContext, suite: gx.ExpectationSuite, frame: pd.DataFrame
) -> ExpectationSuiteValidationResult:
    """Hold a frame against a suite; both are kept under the suite's name."""
    import great_expectations as gx

    source = context.data_sources.add_or_update_pandas("delta_tables")
    asset = source.add_dataframe_asset(suite.name)
    batches = asset.add_batch_definition_whole_dataframe("checked_rows")
    definition = context.validation_definitions.add_or_update(
        gx.ValidationDefinition(name=suite.name, data=batches, suite=context.suites.add_or_update(suite))
    )
    return definition.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": 3},
    )
