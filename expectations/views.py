"""Views of Great Expectations' Data Docs, named in `expectations.data_docs.site`: their pages as they are, but self-contained."""

from __future__ import annotations

from typing import Any

from great_expectations.render.view import DefaultJinjaIndexPageView, DefaultJinjaPageView

from expectations.data_docs import offline


class OfflinePageView(DefaultJinjaPageView):
    """The page of a suite or a validation."""

    def render(self, document: Any, template: Any = None, **kwargs: Any) -> str:
        return offline(str(super().render(document, template, **kwargs)))


class OfflineIndexPageView(DefaultJinjaIndexPageView):
    """The page that lists them."""

    def render(self, document: Any, template: Any = None, **kwargs: Any) -> str:
        return offline(str(super().render(document, template, **kwargs)))
