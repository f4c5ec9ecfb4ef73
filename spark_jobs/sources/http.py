"""A paged HTTP API that answers in JSON.

Each page is written whole to `spool/NAME` under CARTWHEEL_HOME, with what to ask for after it, before the next one is
asked for: a read that was killed goes on at the page it had reached. Batches of pages are landed from there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from codecs import BOM_UTF8
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

import httpx
import msgspec
import stamina
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pyspark.sql import DataFrame, SparkSession

from contracts.dataset import Events, look_back
from contracts.errors import InputError
from contracts.files import read_json, sync, write_json
from contracts.settings import settings
from spark_jobs.ledger import Position
from spark_jobs.parsing import declared_columns
from spark_jobs.paths import for_spark
from spark_jobs.reading import json_rows
from spark_jobs.session import say
from spark_jobs.sources import Batch, Land

Ask = str | int | None
"""What names a page: a cursor, a number or an address. None: the first page."""

_NUMBER = r"-?\d+(\.\d+)?([eE][+-]?\d+)?"
_AHEAD = timedelta(days=1)
"""Times further ahead of our clock are no watermark: one wrong date would hide all records to come."""
_ACCEPTED = "application/json, application/x-ndjson, */*;q=0.1"
_LINES = r"ndjson|jsonl|json-?lines|json-seq|stream\+json"
_FORGOTTEN = (400, 404, 410, 422)
"""Statuses by which an API says that it does not know a cursor any more."""
_TRANSIENT = (408, 425, 429)
_LONGEST_WAIT_S = 600.0


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Auth(_Part):
    """How requests show who asks. The secret itself is never in a file."""

    kind: Literal["bearer", "basic", "header"]
    secret: str
    """Name of the secret (`Settings.secret`): the token, the password or the key."""
    user: str = ""
    """User of `basic`."""
    header: str = "X-API-Key"
    """Header of `header`."""


class Cursor(_Part):
    """Pages by a cursor that each answer gives for the next one. The last answer gives none, or its own again."""

    path: str = Field(min_length=1)
    """Where the next cursor is in the answer, with dots: `meta.next_cursor`."""
    parameter: str = "cursor"
    """Query parameter that takes it."""
    more: str = ""
    """Where the answer says whether there is more (true or false), if it does. Empty: while there is a next cursor."""


class Page(_Part):
    """Pages by number, up to the first empty one."""

    parameter: str = "page"
    first: int = 1


class Link(_Part):
    """Pages by the address of the next one, which must be on the host of `url`."""

    path: str = ""
    """Where it is in the answer, with dots. Empty: in the header `Link`, as rel=next."""


class Since(_Part):
    """Asks for new records only."""

    parameter: str
    """Query parameter that takes the watermark."""
    field: str
    """Field of the records, with dots, whose highest value is the watermark: a time in ISO 8601, or a number."""
    first: str = ""
    """What the first read asks for. Empty: it asks without the parameter."""
    overlap: Annotated[timedelta | Decimal, BeforeValidator(look_back)] = timedelta(minutes=10)
    """How far behind the watermark to ask again: a length of time for times, a number for numbers."""


class Options(_Part):
    """`[events.http]` of the dataset file."""

    url: str
    """Address of the first page, without user or password."""
    records: str = ""
    """Where the list of records is in the answer, with dots. Empty: the answer is the list, or JSON lines."""
    parameters: dict[str, str | int] = Field(default_factory=dict)
    """Query parameters of each request, such as the size of a page. Addresses of `link` are asked as they are."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each request. Not for secrets."""
    auth: Auth | None = None
    cursor: Cursor | None = None
    page: Page | None = None
    link: Link | None = None
    since: Since | None = None
    oldest_first: bool = False
    """Whether new records only ever join at the end: the next read goes on at the last page. Else, and without
    `since`, each read asks for all pages."""
    pages_a_batch: int = Field(500, ge=1)
    """Pages landed in one commit, which waits in the spool until the last of them is there."""
    requests_per_second: float = Field(5.0, gt=0)
    """At most, retries included."""
    attempts: int = Field(6, ge=1)
    """How often to ask for a page while connections break, or the answer is 429, 408, 425 or 5xx."""
    timeout_s: float = Field(30.0, gt=0)
    """Longest wait for a connection, and for each piece of the answer."""
    page_limit_mib: float = Field(64.0, gt=0)
    """Largest answer taken, unpacked."""

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            url = httpx.URL(value)
        except httpx.InvalidURL:
            raise ValueError("is no address") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must start with http:// or https://")
        if url.userinfo:
            raise ValueError("holds a user or password: use auth")
        return value

    @field_validator("headers")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name.lower() in ("authorization", "proxy-authorization", "cookie", "x-api-key"):
                raise ValueError(f"{name} is secret: use auth")
            if not re.fullmatch(r"[!-9;-~]+", name) or not re.fullmatch(r"[ -~]*", text):
                raise ValueError(f"{name!r} cannot be sent as a header")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if sum(one is not None for one in (self.cursor, self.page, self.link)) > 1:
            raise ValueError("give one of cursor, page, link")
        if not self.records and (self.cursor is not None or (self.link is not None and self.link.path)):
            raise ValueError("an answer that holds the next cursor or link is no bare list: set records")
        if self.oldest_first and self.since is not None:
            raise ValueError("since asks for new records already: leave oldest_first out")
        return self


@dataclass(frozen=True)
class _Read:
    """How far a source has been read; the position as an object.

    Attributes:
        ask: the page to ask for next.
        since: value of `since.parameter` in the read under way.
        watermark: highest value of `since.field` so far.
        done: whether the last read came to its end. Then the next one starts.
        digest: of all records of the read under way, or of the last one.
    """

    ask: Ask = None
    since: str | None = None
    watermark: str | None = None
    done: bool = True
    digest: str = ""


@dataclass(frozen=True)
class _Spooled:
    """What is known of a page in the spool beside its records.

    Attributes:
        base: the position that it is to be landed on.
        options: digest of the options that it was asked with.
        reached: the position after it.
    """

    base: Position
    options: str
    reached: Position


@dataclass(frozen=True)
class _Answer:
    """`body` is None where the API says that there is no content."""

    body: bytes | None
    headers: httpx.Headers
    links: dict[str | None, dict[str, str]]
    url: httpx.URL


class Reader:
    """Position: the fields of `_Read`."""

    rereads = False

    def __init__(self, name: str, source: Events, options: Options, folder: Path) -> None:
        self._name, self._source, self._options = name, source, options
        self._columns = list(dict.fromkeys(column for column in declared_columns(source) if column is not None))
        self._asked_s = float("-inf")

    def news(self, position: Position) -> bool:
        return True

    def run(self, spark: SparkSession, position: Position, land: Land) -> None:
        spool = settings().home_dir / "spool" / self._name
        answered: set[Ask] = set()
        with self._client() as client:
            while True:
                pages = self._gathered(client, spool, position, answered)
                reached, before = _Read(**pages[-1].reached), self._before(position)
                if reached.done and before.done and reached.digest in ("", before.digest):
                    break  # a whole read without records, or with the very records of the last one
                land(Batch(self._rows(spark, spool, pages), asdict(reached), where=self._where))
                shutil.rmtree(spool)
                position = asdict(reached)
                if reached.done:
                    break
        shutil.rmtree(spool, ignore_errors=True)

    def _gathered(self, client: httpx.Client, spool: Path, position: Position, answered: set[Ask]) -> list[_Spooled]:
        """The pages of the next batch: those that are in the spool already, and those after them, which join them.

        Args:
            asked: pages asked for in this run, to tell a circle.
        """
        options = hashlib.sha256(self._options.model_dump_json().encode()).hexdigest()
        pages = _spooled(spool, position, options)
        read = _Read(**pages[-1].reached) if pages else self._start(position)
        before: list[bytes] = []
        resumed = read.ask is not None and not read.done
        while not (pages and read.done) and len(pages) < self._options.pages_a_batch:
            if read.ask in answered:
                self._refuse_circle(read.ask)
            answered.add(read.ask)
            answer = self._ask(client, read, may_be_forgotten=resumed)
            resumed = False
            if answer is None:
                say(f"{self._name}: the page reached before is not known any more, so all are asked for again")
                answered.clear()
                read = _Read(None, read.since, read.watermark, done=False, digest=read.digest)
                continue
            records = self._records(answer)
            if before and records == before:  # it would end here, or never: it does not know what we ask with
                self._refuse_circle(read.ask)
            before = records
            if not position and not pages:
                self._refuse_strange(records)
            after = self._next(answer, records, read.ask)
            read = _Read(
                ask=after if after is not None else self._last(read.ask, records),
                since=read.since,
                watermark=self._watermark(read.watermark, records),
                done=after is None,
                digest=_digest(read.digest, *records),
            )
            pages.append(_Spooled(position, options, asdict(read)))
            _spool(spool, len(pages), records, pages[-1])
        return pages

    def _start(self, position: Position) -> _Read:
        """What the next batch starts from: a new read, or the one under way."""
        last = self._before(position)
        if not last.done:
            return last
        since = self._options.since
        since_value: str | None = None
        if since is not None:
            since_value = _earlier(last.watermark, since.overlap) if last.watermark is not None else since.first or None
        return _Read(last.ask, since_value, last.watermark, done=False, digest=_digest(""))

    def _last(self, ask: Ask, records: list[bytes]) -> Ask:
        """Where the next read starts, after one that ended with the page `ask`."""
        options = self._options
        if not options.oldest_first:
            return None
        if options.page is not None and not records and ask is not None:
            return max(int(ask) - 1, options.page.first)  # more records may join the page before the empty one
        return ask

    def _before(self, position: Position) -> _Read:
        """How far the source has been read.

        Raises:
            InputError: it was a source of another kind.
        """
        try:
            return _Read(**position)
        except TypeError:
            raise InputError(
                f"events {self._name!r} were read from a source of another kind so far",
                where="the dataset file",
                cure="give the source another name",
            ) from None

    def _refuse_circle(self, ask: Ask) -> NoReturn:
        raise InputError(
            f"the same page comes again, asked for by {str(ask)[:80]!r}",
            where=self._where,
            cure="correct cursor, page or link in the dataset file: the API may call the parameter otherwise",
        )

    # Asking

    def _client(self) -> httpx.Client:
        options, headers, basic = self._options, {"Accept": _ACCEPTED} | self._options.headers, None
        if options.auth is not None:
            auth = options.auth
            secret = settings().secret(auth.secret).strip()
            if auth.kind == "basic":
                basic = httpx.BasicAuth(auth.user, secret)
            elif not re.fullmatch(r"[ -~]+", secret):
                raise InputError(
                    f"the secret {auth.secret!r} cannot be sent as a header: it holds other than plain characters",
                    where=self._where,
                    cure="set that secret anew",
                )
            else:
                headers |= {"Authorization": f"Bearer {secret}"} if auth.kind == "bearer" else {auth.header: secret}
        return httpx.Client(headers=headers, auth=basic, timeout=options.timeout_s)

    def _url(self, read: _Read) -> httpx.URL:
        """The address of a page.

        Raises:
            InputError: it is on another host than `url`, which must not learn our secret.
        """
        options, first = self._options, httpx.URL(self._options.url)
        if options.link is not None and read.ask is not None:
            url = first.join(str(read.ask))
            if _origin(url) != _origin(first):
                raise InputError(
                    f"the next page is on another host: {_origin(url)}",
                    where=self._where,
                    cure=f"only {_origin(first)} is asked, for the sake of secrets: correct url, or the API's own address",
                )
            return url
        parameters: dict[str, str | int] = dict(options.parameters)
        if options.since is not None and read.since is not None:
            parameters[options.since.parameter] = read.since
        if options.page is not None:
            parameters[options.page.parameter] = options.page.first if read.ask is None else read.ask
        if options.cursor is not None and read.ask is not None:
            parameters[options.cursor.parameter] = read.ask
        return first.copy_merge_params(parameters)

    def _ask(self, client: httpx.Client, read: _Read, *, may_be_forgotten: bool) -> _Answer | None:
        """One page, asked for as often as need be. None: the API does not know it any more.

        Raises:
            InputError: the API refuses, cannot be reached, or its answer is too long.
        """
        url = self._url(read)
        try:
            for attempt in stamina.retry_context(
                on=_wait_s, attempts=self._options.attempts, timeout=None, wait_initial=0.5, wait_max=60.0
            ):
                with attempt:
                    return self._fetch(client, url)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if may_be_forgotten and status in _FORGOTTEN:
                return None
            self._refuse(status, error.response)
        except httpx.HTTPError as error:  # its text may hold what was sent: say only of what kind it is
            raise InputError(
                f"the API does not answer ({type(error).__name__})",
                where=self._where,
                cure="see that it runs and can be reached, and run this again: it goes on at the same page",
            ) from None
        raise AssertionError("unreachable")

    def _fetch(self, client: httpx.Client, url: httpx.URL) -> _Answer:
        wait_s = self._asked_s + 1 / self._options.requests_per_second - time.monotonic()
        time.sleep(max(0.0, wait_s))
        self._asked_s = time.monotonic()
        limit = self._options.page_limit_mib * 2**20
        with client.stream("GET", url) as response:
            if response.status_code == httpx.codes.NO_CONTENT:
                return _Answer(None, response.headers, response.links, response.url)
            if response.status_code != httpx.codes.OK:
                raise httpx.HTTPStatusError("not OK", request=response.request, response=response)
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > limit:
                    raise InputError(
                        f"a page is longer than {self._options.page_limit_mib:g} MiB",
                        where=self._where,
                        cure="ask for fewer records a page, or raise page_limit_mib",
                    )
        return _Answer(bytes(body).removeprefix(BOM_UTF8), response.headers, response.links, response.url)

    def _refuse(self, status: int, response: httpx.Response) -> NoReturn:
        auth = self._options.auth
        secret = (
            f"the secret {auth.secret!r} and its rights" if auth is not None else "auth: the API wants to know who asks"
        )
        if status in (401, 403):
            cure = f"check {secret}"
        elif response.is_redirect:
            target = response.headers.get("location", "").split("?")[0]
            cure = f"it has moved to {target!r}: correct url"
        elif status in _TRANSIENT or status >= 500:
            wait_s = _retry_after_s(response)
            cure = f"run this again{f' after {wait_s:.0f} s' if wait_s else ' later'}: it goes on at the same page"
        else:
            cure = "correct url, parameters and paging in the dataset file"
        raise InputError(
            f"the API answers {status} {httpx.codes.get_reason_phrase(status)}".rstrip(), where=self._where, cure=cure
        )

    @property
    def _where(self) -> str:
        return str(httpx.URL(self._options.url).copy_with(query=None, fragment=None))

    # Understanding answers

    def _records(self, answer: _Answer) -> list[bytes]:
        """The records of an answer, each as it came, on one line.

        Raises:
            InputError: the answer is not JSON, or has no list where `records` says.
        """
        body, path = answer.body, self._options.records
        if body is None:
            return []
        is_lines = re.search(_LINES, answer.headers.get("content-type", "").lower()) is not None
        if path or (not is_lines and body.lstrip()[:1] == b"["):
            try:
                at_path = _at(body, path)
                records = [] if at_path in (None, b"null") else _LIST.decode(at_path)
            except msgspec.ValidationError:
                self._refuse_answer(f"has no list at {path!r}", body)
            except msgspec.DecodeError:
                self._refuse_answer("is not JSON", body)
            if at_path is None:
                self._refuse_answer(f"has nothing at {path!r}", body)
            return [_on_one_line(bytes(record)) for record in records]
        lines = [line for each in body.split(b"\n") if (line := each.strip(b"\r\t \x1e"))]
        if lines and not any(map(_names, lines)):
            self._refuse_answer("is neither a list nor JSON lines", body)
        return lines

    def _refuse_answer(self, what: str, body: bytes) -> NoReturn:
        raise InputError(
            f"the answer {what}: it starts with {body[:60].decode('utf-8', 'replace')!r}",
            where=self._where,
            cure="correct url and records in the dataset file",
        )

    def _refuse_strange(self, records: list[bytes]) -> None:
        """Say at the first page that the dataset file does not fit the API, rather than read all of it in vain.

        Raises:
            InputError: no record has any declared column, or a watermark.
        """
        names = list(dict.fromkeys(chain.from_iterable(map(_names, records))))
        declared = {name.partition(".")[0] for name in self._columns} | {*self._columns}
        if names and not declared & {*names}:
            raise InputError(
                f"no record has one of the declared columns; there are: {', '.join(names)}",
                where=self._where,
                cure="correct columns or records in the dataset file",
            )
        since = self._options.since
        if since is not None and names and self._watermark(None, records) is None:
            kind = "number" if isinstance(since.overlap, Decimal) else "time in ISO 8601"
            raise InputError(
                f"no record has a {kind} at {since.field!r}",
                where=self._where,
                cure="correct since.field, and give since.overlap as a number for numbers and as 10min for times",
            )

    def _watermark(self, before: str | None, records: list[bytes]) -> str | None:
        """The highest of `before` and the records', as it was written. What is not of the overlap's kind does not count."""
        since = self._options.since
        if since is None:
            return None
        numbers = isinstance(since.overlap, Decimal)
        limit = datetime.now(UTC) + _AHEAD
        best, highest = before, None if before is None else _sortable(before, numbers)
        for record in records:
            written = _text_at(record, since.field)
            sortable = _sortable(written, numbers)
            if sortable is None or (not numbers and sortable > limit):
                continue
            if highest is None or sortable > highest:
                best, highest = written, sortable
        return best

    def _next(self, answer: _Answer, records: list[bytes], ask: Ask) -> Ask:
        """The page after this one; None: there is none."""
        options = self._options
        after: Any = None
        if answer.body is None:
            return None
        if options.page is not None:
            return (options.page.first if ask is None else int(ask)) + 1 if records else None
        if options.cursor is not None:
            ended = bool(options.cursor.more) and not _value_at(answer.body, options.cursor.more)
            after = None if ended else _value_at(answer.body, options.cursor.path)
        elif options.link is not None and options.link.path:
            after = _value_at(answer.body, options.link.path)
        elif options.link is not None:
            after = answer.links.get("next", {}).get("url")
        if options.link is not None and after:
            try:
                after = str(answer.url.join(str(after)))
            except httpx.InvalidURL:
                self._refuse_answer(f"gives no address for the next page ({str(after)[:80]!r})", answer.body)
        if after is None or after in ("", False) or after == ask:
            return None
        if not isinstance(after, (str, int)):
            self._refuse_answer("names the next page by neither text nor number", answer.body)
        return after

    # Landing

    def _rows(self, spark: SparkSession, spool: Path, pages: list[_Spooled]) -> DataFrame:
        """Each record as a row; see `reading.json_rows`."""
        files = for_spark(_file(spool, number) for number in range(1, len(pages) + 1))
        return json_rows(spark.read.text(files, lineSep="\n"), self._columns, with_paths=True)


# The spool: page n is `n.jsonl` with its records, then `n.json` (_Spooled), whose presence says that it is whole.


def _file(spool: Path, number: int) -> Path:
    return spool / f"{number:08d}.jsonl"


def _spool(spool: Path, number: int, records: list[bytes], about: _Spooled) -> None:
    spool.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # user ids as they came
    spool.mkdir(exist_ok=True)
    target = _file(spool, number)
    beside = target.with_name(f".{target.name}")
    with beside.open("wb") as file:
        file.writelines(b"%b\n" % record for record in records)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(target)
    sync(spool)
    write_json(spool / f"{number:08d}.json", asdict(about))


def _spooled(spool: Path, position: Position, options: str) -> list[_Spooled]:
    """The whole pages that follow `position` and were asked for with these options; others are removed."""
    pages: list[_Spooled] = []
    while (about := read_json(spool / f"{len(pages) + 1:08d}.json")) and _file(spool, len(pages) + 1).exists():
        page = _Spooled(about["base"], about["options"], about["reached"])
        if (page.base, page.options) != (position, options):
            break
        pages.append(page)
    if not pages:
        shutil.rmtree(spool, ignore_errors=True)
    return pages


def _digest(before: str, *records: bytes) -> str:
    return hashlib.sha256(b"\n".join([before.encode(), *records])).hexdigest() if records else before


# JSON whose records keep the very text they came with: nothing is rounded or written anew.

_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _on_one_line(record: bytes) -> bytes:
    return msgspec.json.format(record, indent=-1) if b"\n" in record or b"\r" in record else record


def _names(record: bytes) -> list[str]:
    """The names of an object's fields; none of what is no object."""
    with suppress(msgspec.DecodeError, UnicodeError):
        return list(_OBJECT.decode(record))
    return []


def _at(text: bytes, path: str) -> bytes | None:
    """The text of what is at a path with dots; None: nothing.

    Raises:
        msgspec.DecodeError: it is not JSON.
    """
    inside: bytes | None = text
    for key in path.split(".") if path else []:
        try:
            inside = _OBJECT.decode(inside).get(key) if inside is not None else None
        except msgspec.ValidationError:  # no object
            return None
    return None if inside is None else bytes(inside)


def _value_at(text: bytes, path: str) -> Any:
    """What is at a path with dots; None: nothing."""
    with suppress(msgspec.DecodeError, UnicodeError):
        inside = _at(text, path)
        return None if inside is None else msgspec.json.decode(inside)
    return None


def _text_at(record: bytes, path: str) -> str:
    """A text or number at a path with dots, as it is written; empty: there is none."""
    value = _value_at(record, path)
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


# Watermarks and waits


def _sortable(written: str, numbers: bool) -> Any:
    """A number, or an instant; None: it is none."""
    if numbers:
        return Decimal(written) if re.fullmatch(_NUMBER, written) else None
    if not re.match(r"\d{4}-\d\d-\d\d", written):
        return None
    with suppress(ValueError):
        moment = datetime.fromisoformat(written)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def _earlier(written: str, by: timedelta | Decimal) -> str:
    """A watermark less the overlap, written in the same way."""
    if isinstance(by, Decimal):
        return format(Decimal(written) - by, "f")
    moment = datetime.fromisoformat(written) - by
    if len(written) == len("2024-01-01"):
        return str(moment.date())
    text = moment.isoformat(sep=written[10])
    return text.replace("+00:00", "Z") if written.endswith("Z") else text


def _origin(url: httpx.URL) -> str:
    """Scheme, host and port."""
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
    return f"{url.scheme}://{url.host}:{port}"


def _retry_after_s(response: httpx.Response) -> float | None:
    """What the API asks us to wait; None: it does not say."""
    written = response.headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", written):
        return float(written)
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(written) - datetime.now(UTC)).total_seconds())
    return None


def _wait_s(error: Exception) -> bool | float:
    """Whether to ask again after a failure, and in how many seconds if the API says so."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status not in _TRANSIENT and status < 500:
            return False
        asked_s = _retry_after_s(error.response)
        if asked_s is None:
            return True
        return asked_s if asked_s <= _LONGEST_WAIT_S else False
    return isinstance(error, (httpx.TransportError, httpx.DecodingError))
