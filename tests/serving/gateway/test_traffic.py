"""The state of traffic, the keys of tokens, and what is rendered from both: no process runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest

from contracts.errors import InputError
from contracts.settings import settings
from serving.desired import Desired
from serving.desired import write as load
from serving.gateway import bootstrap, process, tokens, traffic
from serving.gateway.traffic import Traffic
from serving.rollout import control, document, steps


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.mark.parametrize(
    "state",
    [
        Traffic(),
        Traffic(stable=3),
        Traffic(stable=2**53, canary=1, canary_share=0.25, shadow=2, shadow_share=1.0, popular='{"items": ["é"]}'),
    ],
)
def test_what_is_written_is_read(state: Traffic) -> None:
    """The file of routes holds the whole state, and nothing else does."""
    traffic.write(state)
    assert traffic.read() == state
    traffic.traffic_path().unlink()
    assert traffic.read() == Traffic()


def test_a_file_that_is_not_ours_is_named() -> None:
    """With its place and the cure."""
    traffic.traffic_path().parent.mkdir()
    for text in ("{", "{}", '{"resources": [{"virtual_hosts": []}]}'):
        traffic.traffic_path().write_text(text)
        with pytest.raises(InputError, match=r"routes\.json.*move it away"):
            traffic.read()


def test_a_share_is_one() -> None:
    """From 0 to 1."""
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="canary_share"):
            Traffic(canary=2, canary_share=share)


def test_an_installation_from_before_the_gateway_serves_on() -> None:
    """What the model server calls stable is what the gateway asks, until the next promotion says otherwise."""
    load(Desired((4, 5), {"stable": 4, "canary": 5}))
    control.initialise()
    assert traffic.read() == Traffic(stable=4)
    document.write(steps.promote(document.Rollout(champion=4, challenger=5, state="loaded"), 5, "x"))
    control.initialise()
    assert traffic.read() == Traffic(stable=5, popular="x", step=1)


def test_a_token_is_checked_by_its_own_key_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key for each token, none of them private, no token kept; a revoked key is gone, an expired one goes by itself."""
    first, second = tokens.issue("shop"), tokens.issue("shop", "admin", lifetime_s=3600)
    short = tokens.issue("short", lifetime_s=1800)
    keys = {key.kid: key for key in tokens.valid_keys()}
    for token, scope in ((first, "predict"), (second, "admin")):
        kid = jwt.get_unverified_header(token)["kid"]
        claims = jwt.decode(token, jwt.PyJWK(keys[kid].jwk), algorithms=["EdDSA"], issuer="cartwheel")
        assert (claims["sub"], claims["scope"], claims["exp"]) == ("shop", scope, keys[kid].expires_s)
        [other] = [key for key in keys.values() if key.scope != scope and key.client == "shop"]
        with pytest.raises(jwt.InvalidSignatureError):
            jwt.decode(token, jwt.PyJWK(other.jwk), algorithms=["EdDSA"], issuer="cartwheel")
    written = "".join(path.read_text() for path in home.rglob("*") if path.is_file())
    assert not any(token in written for token in (first, second, short))
    assert '"d":' not in written

    def checked() -> set[str]:
        file = json.loads(bootstrap.jwt_path(settings()).read_text())
        [provider] = file["resources"][0]["typed_config"]["providers"].values()
        return {key["kid"] for key in json.loads(provider["local_jwks"]["inline_string"])["keys"]}

    assert checked() == set(keys)
    [revoked] = tokens.revoke(jwt.get_unverified_header(first)["kid"])
    assert checked() == set(keys) - {revoked.kid}
    now_s = time.time()
    monkeypatch.setattr(tokens.time, "time", lambda: now_s + 2700)
    assert [(key.client, key.scope) for key in tokens.valid_keys()] == [("shop", "admin")]
    tokens.revoke("shop")
    assert len(checked()) == 1  # nobody's: Envoy takes no empty set
    assert checked().isdisjoint(keys)
    with pytest.raises(InputError, match="no client 'shop' has a token"):
        tokens.revoke("shop")


@pytest.mark.parametrize(
    ("client", "scope", "lifetime_s"), [("a", "root", 1), (" ", "predict", 1), ("a", "predict", 0)]
)
def test_a_token_for_nobody_or_nothing_is_refused(client: str, scope: str, lifetime_s: float) -> None:
    """It needs a name, a scope that there is, and time to live."""
    with pytest.raises(InputError, match="no token for client"):
        tokens.issue(client, scope, lifetime_s=lifetime_s)


def test_model_servers_are_named_by_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several, by http or https, with or without a port; the shadow has a share of the room of the others."""
    monkeypatch.setenv("CARTWHEEL_SERVING_URL", "https://one.example, https://two.example:8501/")
    settings.cache_clear()
    clusters = {each["name"]: each for each in bootstrap.bootstrap(settings())["static_resources"]["clusters"]}
    addresses = [
        tuple(end["endpoint"]["address"]["socket_address"].values())
        for end in clusters["model"]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ]
    assert addresses == [("one.example", 443), ("two.example", 8501)]
    assert "transport_socket" in clusters["model"]
    limits = {name: clusters[name]["circuit_breakers"]["thresholds"][0]["max_requests"] for name in ("model", "shadow")}
    assert limits["shadow"] * 8 == limits["model"]
    process.initialise(Traffic())  # Envoy takes it
