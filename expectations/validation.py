"""Great Expectations itself: the file context, one validation, and the Data Docs."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.settings import settings

if TYPE_CHECKING:
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.data_context import FileDataContext

SITE = "local_site"
KEPT_RUNS = 5
"""Validations of each suite that the Data Docs go on showing."""


def open_context() -> FileDataContext:
    """The file context in `home_dir/great_expectations`, with its Data Docs in `reports_dir/data_docs`.

    Everything in it is derived, so one that a killed run left broken is made anew.
    """
    # Read by the library when it is imported; it must not call home from anybody's shop.
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    root = settings().home_dir / "great_expectations"
    try:
        context = gx.get_context(mode="file", context_root_dir=root)
    except Exception:  # whatever is wrong with it, the cure is the same
        shutil.rmtree(root, ignore_errors=True)
        context = gx.get_context(mode="file", context_root_dir=root)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    site: Any = {
        "class_name": "SiteBuilder",
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(data_docs_dir())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "show_how_to_buttons": False,
    }
    if context.variables.data_docs_sites.get(SITE) != site:
        context.update_data_docs_site(SITE, site)
    return context


def data_docs_dir() -> Path:
    return settings().reports_dir / "data_docs"


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


def build_data_docs(context: FileDataContext) -> Path:
    """Render the newest validations of each suite; older ones go, so that the site stays small.

    Returns:
        The index page.
    """
    store = context.validation_results_store
    newest: dict[str, list[Any]] = {}
    for key in sorted(store.list_keys(), key=lambda key: key.run_id.run_time, reverse=True):
        newest.setdefault(key.expectation_suite_identifier.name, []).append(key)
    expired = [key for keys in newest.values() for key in keys[KEPT_RUNS:]]
    for key in expired:
        store.remove_key(key)
    if expired:
        shutil.rmtree(data_docs_dir() / "validations", ignore_errors=True)
    context.build_data_docs(site_names=[SITE])
    return data_docs_dir() / "index.html"
