"""Views of Great Expectations' Data Docs, named in `expectations.data_docs.site`: their pages as they are, but self-contained."""

from __future__ import annotations

from typing import Any

from great_expectations.render.view import DefaultJinjaIndexPageView, DefaultJinjaPageView
from jinja2 import FileSystemBytecodeCache

from contracts.settings import settings
from expectations.data_docs import offline


class OfflinePageView(DefaultJinjaPageView):
    """The page of a suite or a validation."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The templates are compiled once, not with every page. What is run again lies where nobody else writes.
        folder = settings().home_dir / "great_expectations" / "templates"
        folder.mkdir(parents=True, exist_ok=True)
        self.env.bytecode_cache = FileSystemBytecodeCache(str(folder))

    def render(self, document: Any, template: Any = None, **kwargs: Any) -> str:
        return offline(str(super().render(document, template, **kwargs)))


class OfflineIndexPageView(OfflinePageView, DefaultJinjaIndexPageView):
    """The page that lists them."""
