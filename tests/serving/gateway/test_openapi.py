"""docs/openapi.yaml against the gateway: what it says may be sent is answered as it says, and nothing makes it fail."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.settings import REPOSITORY
from serving.gateway.traffic import Traffic

pytestmark = pytest.mark.slow
schema = schemathesis.openapi.from_dict(yaml.safe_load((REPOSITORY / "docs" / "openapi.yaml").read_text()))
INNER = ("traceback", "/work", "127.0.0.1:", "envoy/", "lua", "Bearer ")
FIXED = settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def split(gateway: Any) -> Any:
    """The gateway with a stable version and a canary."""
    gateway.put(Traffic(stable=1, canary=2, canary_share=0.5))
    return gateway


@schema.parametrize()
@FIXED
def test_answers_are_as_documented(case: Any, split: Any) -> None:
    """Status, headers and body of every answer to a request that fits the document, and to some that do not quite."""
    case.call_and_validate(
        base_url=split.url,
        headers={"authorization": f"Bearer {split.token}"},
        # What it does with methods and media types that the document does not name is TensorFlow Serving's affair.
        excluded_checks=[
            schemathesis.checks.CHECKS.get_one("unsupported_method"),
            schemathesis.checks.CHECKS.get_one("ignored_auth"),
            schemathesis.checks.CHECKS.get_one("negative_data_rejection"),
            schemathesis.checks.CHECKS.get_one("positive_data_acceptance"),
            schemathesis.checks.CHECKS.get_one("missing_required_header"),
        ],
    )


names = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126, exclude_characters=':"'), max_size=20)
values = st.text(st.characters(codec="latin-1", min_codepoint=32), max_size=40).map(str.strip)


@given(
    path=st.binary(max_size=60),
    tail=st.sampled_from([":predict", "/metadata", "", "?x=1", ":predict?", "/../..", "%00", "%2e%2e"]),
    body=st.binary(max_size=200) | st.from_regex(rb'\{"instances": \[.{0,40}\]\}'),
    user=values,
)
@FIXED
def test_nothing_makes_it_fail_or_say_too_much(stable: Any, path: bytes, tail: str, body: bytes, user: str) -> None:
    """Any bytes as path, body and user: an answer below 500 that names nothing of the inside; and it goes on."""
    with stable.http() as http:
        for where in (f"/v1/models/recommender{tail}", "/v1/models/" + path.hex() + tail):
            try:
                answer = http.post(where, content=body, headers={"x-cartwheel-user": user.encode("latin-1")})
            except httpx.InvalidURL:
                continue
            assert answer.status_code < 500, answer.text
            assert not [word for word in INNER if word in answer.text.lower()]
    assert stable.predict("x").status_code == 200
