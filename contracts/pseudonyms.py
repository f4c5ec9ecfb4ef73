"""Pseudonyms of user ids: what is stored, served and logged where ids are personal (an e-mail, a phone number)."""

from __future__ import annotations

import hmac

from contracts.errors import InputError

LENGTH = 32
"""Hexadecimal digits of a pseudonym: 128 bits."""


def key_bytes(key: str) -> bytes:
    """The key of the HMAC.

    Raises:
        InputError: the key is empty, so that everybody could compute the pseudonyms.
    """
    if not key:
        raise InputError(
            "the key of the pseudonyms is empty", where="pseudonym_key", cure="use the secret of that name, as it is"
        )
    return key.encode()


def pseudonym(user_id: str, key: str) -> str:
    """The pseudonym of a user id: `LENGTH` hexadecimal digits, the same ones for the same id and key.

    HMAC-SHA-256 of the id as UTF-8, blanks (U+0020) at its ends left out and nothing else changed: ids that differ in
    case, or in how an accent is composed, are different users, as they are where ids are not personal.

    Args:
        key: the secret `pseudonym_key`. Without it nobody can tell which pseudonym is whose, nor try out addresses.

    Raises:
        InputError: the key is empty, or the id is no valid text.

    Source: RFC 2104, cut to the leftmost half of the digest as its section 5 allows.
    """
    try:
        message = user_id.strip(" ").encode()
    except UnicodeEncodeError:
        raise InputError("a user id is not valid UTF-8", where="the user ids", cure="send it as UTF-8") from None
    return hmac.digest(key_bytes(key), message, "sha256").hex()[:LENGTH]
