"""Pseudonyms: the test vectors of RFC 4231, what counts as the same id, and the verb."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import __main__ as verbs
from contracts.errors import InputError
from contracts.pseudonyms import LENGTH, pseudonym
from contracts.settings import settings

KEY = "k" * 64


@pytest.mark.parametrize(
    ("key", "text", "digest"),
    [
        # RFC 4231, sections 4.2 and 4.3: the cases whose key and text are text.
        ("\x0b" * 20, "Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (
            "Jefe",
            "what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
    ],
)
def test_vectors_of_rfc_4231(key: str, text: str, digest: str) -> None:
    """A pseudonym is the leftmost half of the HMAC-SHA-256 that the RFC gives."""
    assert pseudonym(text, key) == digest[:LENGTH]


@given(st.text())
def test_blanks_at_the_ends_do_not_count_and_all_else_does(text: str) -> None:
    """` ann ` is ann, but Ann and ann with a tab are other users; another key makes everybody another user."""
    assert pseudonym(f"  {text} ", KEY) == pseudonym(text, KEY)
    assert pseudonym(f"{text}\t", KEY) != pseudonym(text, KEY)
    assert pseudonym(text, KEY) != pseudonym(text, KEY + "k")
    assert (pseudonym(text.upper(), KEY) == pseudonym(text, KEY)) == (text.upper().strip(" ") == text.strip(" "))


def test_what_is_refused() -> None:
    """An empty key would let everybody compute pseudonyms; half a character is no text."""
    with pytest.raises(InputError, match="key of the pseudonyms is empty"):
        pseudonym("ann", "")
    with pytest.raises(InputError, match="not valid UTF-8"):
        pseudonym("\ud800", KEY)


@pytest.fixture
def key_of_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    monkeypatch.setenv("CARTWHEEL_SECRET_PSEUDONYM_KEY", KEY)
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.usefixtures("key_of_installation")
@pytest.mark.parametrize("from_stdin", [True, False])
def test_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], from_stdin: bool) -> None:
    """`python -m contracts pseudonym` prints one pseudonym for each id, from its arguments or one a line from stdin."""
    ids = ["ann@example.org", "Zoë"]
    monkeypatch.setattr(sys, "argv", ["contracts", "pseudonym", *([] if from_stdin else ids)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("ann@example.org\r\nZoë\n" if from_stdin else ""))
    verbs.main()
    assert capsys.readouterr().out.splitlines() == [pseudonym(each, KEY) for each in ids]


def test_verb_without_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where there is no key, it says where to put one."""
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    monkeypatch.delenv("CARTWHEEL_SECRET_PSEUDONYM_KEY", raising=False)
    settings.cache_clear()
    monkeypatch.setattr(sys, "argv", ["contracts", "pseudonym", "ann"])
    with pytest.raises(SystemExit) as ended:
        verbs.main()
    settings.cache_clear()
    assert ended.value.code == 2
    assert "no secret 'pseudonym_key'" in capsys.readouterr().err
