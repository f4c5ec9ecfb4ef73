"""The Data Docs: pages of Great Expectations that show every rule and its answer, readable without the internet."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.settings import settings

if TYPE_CHECKING:
    from great_expectations.data_context import EphemeralDataContext

SITE = "local_site"
KEPT_RUNS = 5
"""Validations of each suite that the Data Docs go on showing."""
ASSETS = Path(__file__).parent / "assets"
_ELSEWHERE = re.compile(
    r"""<link\b[^>]*\bhref="https://[^>]*>|<script\b[^>]*\bsrc="https://[^>]*>\s*</script>|<footer>.*?</footer>""",
    re.DOTALL,
)
_LOGO = re.compile(r"""<img\b[^>]*\bsrc="https://[^>]*>""")
_PICTURE = re.compile(r"""url\('https://[^']*'\)""")


def folder() -> Path:
    return settings().reports_dir / "data_docs"


def site() -> dict[str, Any]:
    """The site's configuration. Its pages are rendered by `expectations.views`."""
    page = {"module_name": "expectations.views", "class_name": "OfflinePageView"}
    return {
        "class_name": "SiteBuilder",
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder())},
        "site_index_builder": {
            "class_name": "DefaultSiteIndexBuilder",
            "view": page | {"class_name": "OfflineIndexPageView"},
        },
        "site_section_builders": {
            "expectations": {
                "class_name": "DefaultSiteSectionBuilder",
                "source_store_name": "expectations_store",
                "renderer": {"class_name": "ExpectationSuitePageRenderer"},
                "view": page,
            },
            "validations": {
                "class_name": "DefaultSiteSectionBuilder",
                "source_store_name": "validation_results_store",
                "renderer": {"class_name": "ValidationResultsPageRenderer"},
                "view": page,
            },
        },
        "show_how_to_buttons": False,
    }


def _head() -> str:
    """Our stylesheet and script, as they stand in every page."""
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("data_docs.css", "data_docs.js"))
    return f"<style>\n{style}</style>\n<script>\n{script}</script>\n"


def offline(page: str) -> str:
    """A page that loads nothing from elsewhere: our stylesheet and script stand in for those of the internet."""
    page = _LOGO.sub("<strong>Great Expectations</strong>", _ELSEWHERE.sub("", _PICTURE.sub("none", page)))
    return page.replace("</head>", f"{_head()}</head>", 1)


def build(context: EphemeralDataContext, suites: Collection[str]) -> Path:
    """Render the newest validation of some suites, and the index. Old validations go, so that the site stays small.

    Returns:
        The index page.
    """
    from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier

    store = context.validation_results_store
    runs: dict[str, list[Any]] = {}
    for key in sorted(store.list_keys(), key=lambda key: key.run_id.run_time, reverse=True):
        runs.setdefault(key.expectation_suite_identifier.name, []).append(key)
    for key in [key for keys in runs.values() for key in keys[KEPT_RUNS:]]:
        store.remove_key(key)
        shutil.rmtree(folder().joinpath("validations", *key.to_tuple()[:-1]), ignore_errors=True)
    index = folder() / "index.html"
    is_ours = index.exists() and _head() in index.read_text(encoding="utf-8")
    fresh = [*(runs[name][0] for name in suites), *map(ExpectationSuiteIdentifier, suites)]
    # A site of another make is rendered as a whole.
    context.build_data_docs(site_names=[SITE], resource_identifiers=fresh if is_ours else None)
    return index
