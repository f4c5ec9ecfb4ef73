"""Who may ask: one key pair for each token, whose private half is thrown away once it has signed.

The gateway holds public keys only, nothing here can sign a second token, and a token is revoked by removing its key.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from contracts.errors import InputError
from contracts.files import locked, read_json, write_json
from contracts.settings import settings
from serving.gateway import bootstrap
from serving.gateway.routes import OURS

PREDICT, ADMIN = "predict", "admin"
SCOPES = (PREDICT, ADMIN)
DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is kept of a token: the key `kid` that checks it, whose it is, what it allows, when it ends (Unix time)."""

    kid: str
    client: str
    scope: str
    expires_s: int
    x: str

    @property
    def jwk(self) -> dict[str, str]:
        """The public key as the gateway reads it (RFC 8037)."""
        return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.kid, "x": self.x}


def valid_keys() -> list[Key]:
    """The keys of all tokens that are neither revoked nor expired, in the order they were issued."""
    return [Key(**entry) for entry in read_json(_keys_path()) or [] if entry["expires_s"] > time.time()]


def issue(client: str, scope: str = PREDICT, *, lifetime_s: float = 90 * DAY_S) -> str:
    """A new token, which is kept nowhere: whoever loses it is given another.

    Args:
        client: who it is for. Limits hold for all tokens of a client together, and exposures name it.
        scope: `predict`, or `admin`, which may also choose the arm and the time of an exposure.

    Raises:
        InputError: no such scope, no name, or no time to live.
    """
    if scope not in SCOPES or not client.strip() or lifetime_s <= 0:
        raise InputError(
            f"no token for client {client!r}, scope {scope!r}, {lifetime_s:g} s",
            where="the gateway's tokens",
            cure=f"name the client, one of the scopes {', '.join(SCOPES)}, and a lifetime above zero",
        )
    key, private = _generated(client, scope, lifetime_s)
    _change(lambda keys: [*keys, key])
    claims = {"iss": OURS, "sub": client, "scope": scope, "iat": int(time.time()), "exp": key.expires_s}
    return jwt.encode(claims, private, algorithm="EdDSA", headers={"kid": key.kid})


def _generated(client: str, scope: str, lifetime_s: float) -> tuple[Key, Ed25519PrivateKey]:
    private = Ed25519PrivateKey.generate()
    public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    expires_s = int(time.time()) + max(1, int(lifetime_s))
    key = Key(kid=uuid.uuid4().hex[:12], client=client, scope=scope, expires_s=expires_s, x=public["x"])
    return key, private


def of_client(client: str) -> list[Key]:
    """The keys of a client's tokens, the latest at the end.

    Raises:
        InputError: it has none.
    """
    keys = [key for key in valid_keys() if key.client == client]
    if not keys:
        raise InputError(
            f"no client {client!r} has a token",
            where=str(_keys_path()),
            cure="`python -m serving token list` names keys and clients",
        )
    return keys


def revoke(name: str) -> list[Key]:
    """Refuse a token from now on: the one of a key, or all of a client.

    Returns:
        The keys that were removed.

    Raises:
        InputError: there is none.
    """
    removed = [key for key in valid_keys() if key.kid == name] or of_client(name)
    _change(lambda keys: [key for key in keys if key not in removed])
    return removed


def publish() -> None:
    """Write the file that the gateway reads, from the keys that are kept."""
    _change(lambda keys: keys)


def _keys_path() -> Path:
    return settings().gateway_dir / "keys.json"


def _change(change: Callable[[list[Key]], list[Key]]) -> None:
    with locked(settings().gateway_dir / ".tokens.lock"):
        keys = change(valid_keys())
        write_json(_keys_path(), [vars(key) for key in keys], mode=0o600)
        # Envoy takes no empty set: then a key stands there whose private half nobody has.
        checked = keys or [_generated("nobody", PREDICT, DAY_S)[0]]
        jwks = json.dumps({"keys": [key.jwk for key in checked]})
        write_json(bootstrap.jwt_path(settings()), bootstrap.jwt_discovery(jwks))
