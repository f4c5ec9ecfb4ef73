"""Events from an HTTP API: a real server on loopback that pages, refuses, breaks and is read by a killed process."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import stamina
from pydantic import ValidationError

from contracts.dataset import Events
from contracts.errors import InputError
from contracts.settings import REPOSITORY, settings
from spark_jobs import reading
from spark_jobs.sources import Batch, Position
from spark_jobs.sources.http import Options, Reader

TOKEN = "s3cret-t0ken"
COLUMNS = {"user_id": "who", "item_id": "what", "occurred_at": "at"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """`promised` bytes where the connection breaks before all are sent."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    promised: int | None = None


@dataclass
class Api:
    """A server whose answers are those of `answer`; it keeps what it was asked."""

    url: str
    answer: Callable[[Request], Answer] = lambda request: Answer([])
    requests: list[Request] = field(default_factory=list)

    @property
    def queries(self) -> list[dict[str, str]]:
        return [request.query for request in self.requests]


@pytest.fixture
def api() -> Iterator[Api]:
    """A server on a free port, gone after the test."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            request = Request(parts.path, query, {name.lower(): value for name, value in self.headers.items()})
            running.requests.append(request)
            answer = running.answer(request)
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(answer.promised or len(body)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked was killed
                self.wfile.write(body)
            if answer.promised is not None:
                self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    running = Api(f"http://127.0.0.1:{server.server_port}/v1/orders")
    thread.start()
    yield running
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A home of our own, the API's secret, no proxy, and no waiting between attempts."""
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    monkeypatch.setenv("CARTWHEEL_SECRET_SHOP_API", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings.cache_clear()
    with stamina.set_testing(True, attempts=4, cap=True):
        yield
    settings.cache_clear()


def spooled() -> list[str]:
    return sorted(path.name for path in (settings().home_dir / "spool").glob("orders/*"))


def reader(api: Api, columns: dict[str, str] = COLUMNS, **options: Any) -> Reader:
    declared = Events.model_validate({"columns": columns, "http": {}})
    declaration = {"url": api.url, "requests_per_second": 10_000} | options
    return Reader("orders", declared, Options.model_validate(declaration), Path())


def run(spark: Any, source: Reader, position: Position | None = None) -> tuple[list[list[Row]], Position]:
    """The rows of each batch, without nulls, and the position after them."""
    batches: list[list[Row]] = []
    reached = position or {}

    def land(batch: Batch) -> None:
        nonlocal reached
        rows = [row.asDict() for row in batch.rows.drop(reading.KEYS).collect()]
        rows = [row | (row.pop(reading.FIELDS) or {}) for row in rows]
        batches.append([{name: value for name, value in row.items() if value is not None} for row in rows])
        reached = json.loads(json.dumps(batch.position))  # as the ledger keeps it

    source.run(spark, reached, land)
    return batches, reached


def record(number: int, **more: Any) -> Row:
    return {"id": number, "who": "ann", "what": "apple", "at": f"2024-01-{number:02d}T10:00:00Z"} | more


def ids(batches: list[list[Row]]) -> list[list[int]]:
    """Of each batch; Spark does not keep the order of pages."""
    return [sorted(int(row["id"]) for row in batch) for batch in batches]


def by_cursor(pages: list[list[Any]]) -> Callable[[Request], Answer]:
    """Pages whose cursors are `p1`, `p2`..."""

    def answer(request: Request) -> Answer:
        number = int(request.query.get("cursor", "p0")[1:])
        after = f"p{number + 1}" if number + 1 < len(pages) else None
        return Answer({"data": {"orders": pages[number]}, "meta": {"next": after}})

    return answer


CURSOR = {"records": "data.orders", "cursor": {"path": "meta.next"}}


def test_pages_by_cursor_land_in_batches(spark: Any, api: Api) -> None:
    """Pages are landed two by two, every value as text, and the spool is empty afterwards."""
    first = (
        b'{"data": {"x": [0], "orders": [\n {"id": 1, "who": "J\xc3\xbcrgen \\"J\\"", "what": 12.10,\r\n "at": null,'
        b' "more": {"a": [1.50, 1e2]}, "gone": true, "big": 12345678901234567890},\n{"id":2,"who":" b"}]},'
        b' "meta": {"next": "p1"}}'
    )
    pages = by_cursor([[], [record(3)], [record(4), record(5)]])
    api.answer = lambda request: pages(request) if "cursor" in request.query else Answer(first)
    source = reader(api, **CURSOR, pages_a_batch=2, parameters={"limit": 2})
    batches, position = run(spark, source)
    assert ids(batches) == [[1, 2, 3], [4, 5]]
    assert sorted(batches[0], key=lambda row: row["id"])[:2] == [
        {"id": "1", "who": 'Jürgen "J"', "what": "12.1", "more": '{"a":[1.5,100.0]}', "gone": "true",
         "big": "12345678901234567890"},
        {"id": "2", "who": " b"},
    ]  # fmt: skip
    assert api.queries == [{"limit": "2"}, {"limit": "2", "cursor": "p1"}, {"limit": "2", "cursor": "p2"}]
    assert spooled() == []
    assert (position["done"], position["ask"]) == (True, None)


def test_columns_that_no_record_has_are_null(spark: Any, api: Api) -> None:
    """A declared column is there in each batch; dots lead into objects; capitals count."""
    api.answer = lambda request: Answer([
        {"Who": "ann", "buyer": {"e.mail": 1, "id": 7.50}}, {"who": "bob", "buyer": {"id": "8"}}, {"who": "cid"},
    ])  # fmt: skip
    landed: list[Any] = []
    columns = {"user_id": "who", "item_id": "buyer.id", "occurred_at": "at"}

    def land(batch: Batch) -> None:
        rows = batch.rows.select("who", reading.column("buyer.id"), "at").collect()
        landed.extend([set(batch.rows.columns), [tuple(row) for row in rows]])

    reader(api, columns).run(spark, {}, land)
    assert landed == [
        {"who", "buyer.id", "at", reading.FIELDS, reading.KEYS, reading.CORRUPT},
        [(None, "7.5", None), ("bob", "8", None), ("cid", None, None)],
    ]


def test_pages_by_number_end_with_an_empty_one(spark: Any, api: Api) -> None:
    """Numbers start where the API starts, and a read that only appends goes on at the last page with records."""
    pages = [[record(1), record(2)], [record(3)]]
    api.answer = lambda request: Answer(dict(enumerate(pages)).get(int(request.query["p"]), []))
    source = reader(api, page={"parameter": "p", "first": 0}, oldest_first=True)
    batches, position = run(spark, source)
    assert ids(batches) == [[1, 2, 3]]
    assert [query["p"] for query in api.queries] == ["0", "1", "2"]
    api.requests.clear()
    pages[1].append(record(4))
    pages.append([record(5)])
    batches, position = run(spark, source, position)
    assert ids(batches) == [[3, 4, 5]]
    assert [query["p"] for query in api.queries] == ["1", "2", "3"]


def test_all_pages_are_read_again_unless_new_ones_join_at_the_end(spark: Any, api: Api) -> None:
    """An API that gives the newest first is read from its start each time; unchanged, that makes no batch."""
    pages = [[record(2)], [record(1)]]
    api.answer = lambda request: by_cursor(pages)(request)
    source = reader(api, **CURSOR)
    position = run(spark, source)[1]
    assert run(spark, source, position) == ([], position)
    pages.insert(0, [record(3)])
    assert ids(run(spark, source, position)[0]) == [[1, 2, 3]]


@pytest.mark.parametrize("how", ["header", "relative", "absolute"])
def test_pages_by_link(spark: Any, api: Api, how: str) -> None:
    """The next page's address comes in the header Link or in the answer, relative or not, and is asked as it is."""

    def answer(request: Request) -> Answer:
        number = int(request.query.get("after", "0"))
        after = f"{api.url if how == 'absolute' else '/v1/orders'}?after={number + 1}&x=a%2Bb" if number < 2 else None
        if how == "header":
            links = f'<{api.url}?after=0>; rel="first"' + (f', <{after}>; rel="next"' if after else "")
            return Answer([record(number + 1)], headers={"Link": links})
        return Answer({"items": [record(number + 1)], "next": after})

    api.answer = answer
    how_paged = {"link": {}} if how == "header" else {"link": {"path": "next"}, "records": "items"}
    batches, _ = run(spark, reader(api, **how_paged, parameters={"limit": 1}))
    assert ids(batches) == [[1, 2, 3]]
    assert api.queries == [{"limit": "1"}, {"after": "1", "x": "a+b"}, {"after": "2", "x": "a+b"}]


@pytest.mark.parametrize(
    "host", ["http://localhost:{port}/", "http://127.0.0.1:1/", "https://127.0.0.1:{port}/", "//evil.invalid/"]
)
def test_a_link_to_another_host_is_not_followed(spark: Any, api: Api, host: str) -> None:
    """No request, and so no token, goes to any host but the declared one."""
    link = host.format(port=urlsplit(api.url).port)
    api.answer = lambda request: Answer({"items": [record(1)], "next": link})
    source = reader(api, records="items", link={"path": "next"}, auth={"kind": "bearer", "secret": "shop_api"})
    with pytest.raises(InputError, match="the next page is on another host"):
        run(spark, source)
    assert len(api.requests) == 1


def test_json_lines_and_records_that_are_none(spark: Any, api: Api) -> None:
    """What is no JSON object, or no UTF-8, is a row with its text and leaves its neighbours alone."""
    lines = [
        json.dumps(record(1)).encode(), b"", b'{"id": 2, "who": ', b"[1, 2]", b'"text"', b"null", b'{"id": NaN}',
        b'{"id": 3, "who": "J\xfcrgen"}', b'{"id": "5\\ud83d", "what": "half a pair"}', json.dumps(record(4)).encode() + b"\r",
    ]  # fmt: skip
    api.answer = lambda request: Answer(b"\n".join(lines), headers={"Content-Type": "application/x-ndjson"})
    batches, _ = run(spark, reader(api))
    assert [row.get("id", row.get(reading.CORRUPT)) for row in batches[0]] == [
        "1", '{"id": 2, "who":', "[1, 2]", '"text"', "null", '{"id": NaN}', '{"id": 3, "who": "J\ufffdrgen"}', "5?", "4",
    ]  # fmt: skip


def test_elements_of_a_list_that_are_no_objects(spark: Any, api: Api) -> None:
    """They are rows with their text, too."""
    api.answer = lambda request: Answer({"data": [record(1), 7, [1], "x\ny", None, {}]})
    batches, _ = run(spark, reader(api, records="data"))
    assert [row.get(reading.CORRUPT) for row in batches[0]] == [None, "7", "[1]", '"x\\ny"', "null", None]


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ({"kind": "bearer"}, "authorization", f"Bearer {TOKEN}"),
        (
            {"kind": "basic", "user": "ann"},
            "authorization",
            "Basic " + base64.b64encode(f"ann:{TOKEN}".encode()).decode(),
        ),
        ({"kind": "header", "header": "X-Shop-Key"}, "x-shop-key", TOKEN),
    ],
)
def test_authentication(spark: Any, api: Api, auth: Row, header: str, value: str) -> None:
    """The secret is sent the declared way, beside the declared headers, and nothing of it is kept."""
    api.answer = lambda request: Answer([record(1)] if request.headers.get(header) == value else [], 200)
    source = reader(api, auth={"secret": "shop_api", **auth}, headers={"X-Version": "2"})
    batches, position = run(spark, source)
    assert ids(batches) == [[1]]
    assert api.requests[0].headers["x-version"] == "2"
    assert TOKEN not in json.dumps(position)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b"{}", 401), "answers 401 Unauthorized.*/v1/orders.*check the secret 'shop_api'"),
        (Answer(b"{}", 403), "answers 403 Forbidden.*secret 'shop_api' and its rights"),
        (Answer(b"{}", 404), "answers 404 Not Found.*correct url"),
        (Answer(b"{}", 302, {"Location": "http://127.0.0.1:1/new?x=1"}), "moved to 'http://127.0.0.1:1/new'"),
        (Answer(b"{}", 503), "answers 503.*goes on at the same page"),
        (Answer(b"{}", 429, {"Retry-After": "7200"}), "answers 429.*after 7200 s"),
        (Answer(b"[", promised=100), "does not answer.*RemoteProtocolError"),
        (Answer(b"<html>no</html>"), "neither a list nor JSON lines.*<html>"),
        (Answer(b'[{"id": 1}'), "is not JSON"),
        (Answer({"id": 1, "x": 2}), "no record has one of the declared columns; there are: id, x"),
        (Answer(b" " * 2000), "longer than 0.001 MiB"),
        (Answer(gzip.compress(b" " * 2000), 200, {"Content-Encoding": "gzip"}), "longer than 0.001 MiB"),
    ],
)
def test_refusals_are_one_line(spark: Any, api: Api, answer: Answer, message: str) -> None:
    """What a person can cure is said in one line with the status, and never the token."""
    api.answer = lambda request: answer
    source = reader(
        api, url=f"{api.url}?key=k3y", auth={"kind": "bearer", "secret": "shop_api"}, page_limit_mib=0.001
    )  # fmt: skip
    with pytest.raises(InputError, match=message) as caught:
        run(spark, source)
    line = str(caught.value)
    assert "\n" not in line
    assert TOKEN not in line
    assert "k3y" not in line


@pytest.mark.parametrize(
    ("records", "body", "message"),
    [
        ("data.rows", {"data": {}}, "has nothing at 'data.rows'"),
        ("data.rows", {"data": [1]}, "has nothing at 'data.rows'"),
        ("data", {"data": {"a": 1}}, "has no list at 'data'"),
        ("data", [record(1)], "has nothing at 'data'"),
    ],
)
def test_a_wrong_path_is_told(spark: Any, api: Api, records: str, body: Any, message: str) -> None:
    """A path that leads to no list is an error with the answer's start."""
    api.answer = lambda request: Answer(body)
    with pytest.raises(InputError, match=message):
        run(spark, reader(api, records=records))


def test_no_records_are_no_error(spark: Any, api: Api) -> None:
    """A list of nothing, `null` in its place and 204 are an empty read, which makes no batch."""
    for answer in (Answer({"data": []}), Answer({"data": None}), Answer(b"", 204)):
        api.answer = lambda request, answer=answer: answer
        assert run(spark, reader(api, records="data")) == ([], {})


@pytest.mark.parametrize("secret", ["line\nbreak", "schlüssel"])
def test_a_secret_that_cannot_be_sent(spark: Any, api: Api, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    """It is told by its name."""
    monkeypatch.setenv("CARTWHEEL_SECRET_SHOP_API", secret)
    with pytest.raises(InputError, match="secret 'shop_api' cannot be sent") as caught:
        run(spark, reader(api, auth={"kind": "bearer", "secret": "shop_api"}))
    assert secret not in str(caught.value)


def test_retry_after_is_honoured(spark: Any, api: Api) -> None:
    """Asked to wait two seconds, which is longer than we would by ourselves, we ask once more and no more."""
    times_s: list[float] = []

    def answer(request: Request) -> Answer:
        times_s.append(time.monotonic())
        if len(times_s) == 1:
            return Answer(b"", 429, {"Retry-After": "2"})
        return Answer([record(1)]) if times_s[-1] - times_s[0] >= 2 else Answer(b"", 400)

    api.answer = answer
    with stamina.set_testing(False):
        assert ids(run(spark, reader(api))[0]) == [[1]]
    assert len(api.requests) == 2


def test_failures_that_pass(spark: Any, api: Api) -> None:
    """5xx and a connection cut in the middle of a page are asked for again; nothing of the broken page is kept."""
    whole = json.dumps([record(1), record(2)]).encode()
    answers = [Answer(b"", 500), Answer(b"", 502), Answer(whole[:60], promised=len(whole)), Answer(whole)]
    api.answer = lambda request: answers.pop(0)
    assert ids(run(spark, reader(api))[0]) == [[1, 2]]
    assert len(api.requests) == 4


def test_since_asks_for_what_is_new(spark: Any, api: Api) -> None:
    """The next read asks from the overlap behind the highest time on; a time far ahead is none; nothing new, no batch."""
    records = [record(1), record(3, at="2024-01-03T12:30:00+02:00"), record(2), record(4, at="2999-01-01T00:00:00Z")]
    api.answer = lambda request: Answer({"rows": records})
    since = {"parameter": "from", "field": "at", "overlap": "1h", "first": "2023-12-01"}
    source = reader(api, records="rows", since=since)
    batches, position = run(spark, source)
    assert ids(batches) == [[1, 2, 3, 4]]
    assert position["watermark"] == "2024-01-03T12:30:00+02:00"
    assert run(spark, source, position) == ([], position)
    records.append(record(5))
    batches, position = run(spark, source, position)
    records.clear()
    assert run(spark, source, position) == ([], position)
    assert [query["from"] for query in api.queries] == [
        "2023-12-01", "2024-01-03T11:30:00+02:00", "2024-01-03T11:30:00+02:00", "2024-01-05T09:00:00Z",
    ]  # fmt: skip


def test_since_by_number(spark: Any, api: Api) -> None:
    """A number is a watermark when the overlap is one; during a read of many pages the value asked with stays."""
    pages = [
        [record(1, seq={"n": 9})],
        [record(2, seq={"n": 12}), record(3, seq={"n": "x"}), 7],
        [record(4, seq={"n": 10})],
    ]
    api.answer = by_cursor(pages)
    since = {"parameter": "min", "field": "seq.n", "overlap": 2}
    source = reader(api, **CURSOR, since=since, pages_a_batch=1)
    batches, position = run(spark, source)
    assert [len(batch) for batch in batches] == [1, 3, 1]
    assert (position["watermark"], position["since"]) == ("12", None)
    api.requests.clear()
    assert len(run(spark, source, position)[0]) == 3
    assert [query["min"] for query in api.queries] == ["10", "10", "10"]


@pytest.mark.parametrize(("field", "overlap"), [("nope", "1h"), ("at", 5), ("id", "1h")])
def test_a_watermark_that_no_record_has(spark: Any, api: Api, field: str, overlap: Any) -> None:
    """It is told at once, for else each read would ask for everything."""
    api.answer = lambda request: Answer([record(1)])
    with pytest.raises(InputError, match=f"no record has a .* at '{field}'"):
        run(spark, reader(api, since={"parameter": "s", "field": field, "overlap": overlap}))


def test_a_parameter_that_the_api_does_not_know(spark: Any, api: Api) -> None:
    """The same page again and again is an error, not the end and no endless read."""
    api.answer = lambda request: Answer({"rows": [record(1)], "next": "c1"})
    with pytest.raises(InputError, match="the same page comes again, asked for by 'c1'"):
        run(spark, reader(api, records="rows", cursor={"path": "next", "parameter": "wrong"}))
    api.answer = lambda request: Answer([record(1)])
    with pytest.raises(InputError, match="the same page comes again, asked for by '2'"):
        run(spark, reader(api, page={"parameter": "wrong"}))


def test_cursors_that_go_round(spark: Any, api: Api) -> None:
    """A circle of different pages is an error as well, also across batches."""
    after = {"": "a", "a": "b", "b": "c", "c": "a"}

    def answer(request: Request) -> Answer:
        cursor = request.query.get("cursor", "")
        return Answer({"rows": [record(1, page=cursor)], "next": after[cursor]})

    api.answer = answer
    with pytest.raises(InputError, match="the same page comes again, asked for by 'a'"):
        run(spark, reader(api, records="rows", cursor={"path": "next"}, pages_a_batch=2))


def test_ends_of_cursors(spark: Any, api: Api) -> None:
    """A flag may say that there is no more, and an API may give its last cursor again and again."""
    api.answer = lambda request: Answer({"rows": [record(1)], "next": "c", "has_more": False})
    source = reader(api, records="rows", cursor={"path": "next", "more": "has_more"})
    assert ids(run(spark, source)[0]) == [[1]]
    rows = {"": [record(1)], "c": []}
    api.answer = lambda request: Answer({"rows": rows[request.query.get("cursor", "")], "next": "c"})
    source = reader(api, records="rows", cursor={"path": "next"}, oldest_first=True)
    batches, position = run(spark, source)
    assert ids(batches) == [[1]]
    rows["c"].append(record(2))
    assert ids(run(spark, source, position)[0]) == [[2]]


def test_a_forgotten_cursor_starts_the_read_again(spark: Any, api: Api) -> None:
    """Where the API does not know the cursor of a read that was cut off any more, all pages are asked for again."""
    pages = by_cursor([[record(1)], [record(2)], [record(3)]])
    broken = True

    def answer(request: Request) -> Answer:
        if broken and request.query.get("cursor") == "p2":
            return Answer(b"", 401)
        return pages(request)

    api.answer = answer
    source = reader(api, **CURSOR)
    with pytest.raises(InputError, match="401"):
        run(spark, source)
    broken = False
    fresh = by_cursor([[record(1)], [record(2)], [record(3)]])

    def forgotten(request: Request) -> Answer:
        return Answer(b"", 410) if len(api.requests) == 4 else fresh(request)

    api.answer = forgotten
    batches, _ = run(spark, source)
    assert ids(batches) == [[1, 1, 2, 2, 3]]


def test_a_failed_landing_asks_for_nothing_twice(spark: Any, api: Api) -> None:
    """Pages that were asked for and not landed are landed from the spool by the next run."""
    api.answer = by_cursor([[record(1)], [record(2)], [record(3)]])
    source = reader(api, **CURSOR, pages_a_batch=2)

    def land(batch: Batch) -> None:
        raise RuntimeError("the disk is full")

    with suppress(RuntimeError):
        source.run(spark, {}, land)
    assert spooled() == ["00000001.json", "00000001.jsonl", "00000002.json", "00000002.jsonl"]
    assert ids(run(spark, source)[0]) == [[1, 2], [3]]
    assert len(api.requests) == 3


def test_a_page_without_its_records_is_asked_for_again(spark: Any, api: Api) -> None:
    """A spool of an earlier version, which kept records in other files, stops nothing."""
    api.answer = by_cursor([[record(1)], [record(2)]])
    source = reader(api, **CURSOR)

    def land(batch: Batch) -> None:
        raise RuntimeError("killed")

    with suppress(RuntimeError):
        source.run(spark, {}, land)
    for path in (settings().home_dir / "spool").rglob("*.jsonl"):
        path.rename(path.with_suffix(".jsonl.gz"))
    assert ids(run(spark, source)[0]) == [[1, 2]]
    assert len(api.requests) == 4


def test_what_has_landed_is_not_landed_from_the_spool_again(spark: Any, api: Api) -> None:
    """Killed after the commit and before the spool was cleared, a read goes on behind it."""
    api.answer = by_cursor([[record(1)], [record(2)], [record(3)]])
    source = reader(api, **CURSOR, pages_a_batch=2)
    committed: list[Any] = []

    def land(batch: Batch) -> None:
        committed.append(batch.position)
        raise RuntimeError("killed")

    with suppress(RuntimeError):
        source.run(spark, {}, land)
    batches, _ = run(spark, source, committed[0])
    assert ids(batches) == [[3]]
    assert len(api.requests) == 3
    assert spooled() == []


def test_a_spool_of_other_options_is_not_used(spark: Any, api: Api) -> None:
    """Pages that were asked for otherwise are asked for anew."""
    api.answer = by_cursor([[record(1)], [record(2)]])

    def land(batch: Batch) -> None:
        raise RuntimeError

    with suppress(RuntimeError):
        reader(api, **CURSOR, pages_a_batch=1).run(spark, {}, land)
    assert ids(run(spark, reader(api, **CURSOR, parameters={"x": 1}))[0]) == [[1, 2]]
    assert api.queries == [{}, {"x": "1"}, {"x": "1", "cursor": "p1"}]


def test_another_kind_of_position(spark: Any, api: Api) -> None:
    """A position of another kind of source is told."""
    with pytest.raises(InputError, match="another kind"):
        run(spark, reader(api), {"files": {}})


CHILD = """
import json, sys
from pathlib import Path
from contracts.dataset import Events
from spark_jobs.sources.http import Options, Reader

options, columns = Options.model_validate_json(sys.argv[1]), json.loads(sys.argv[2])
Reader("orders", Events.model_validate({"columns": columns, "http": {}}), options, Path()).run(None, {}, None)
"""


@pytest.mark.parametrize("killed_at", [1, 7])
def test_killed_in_the_middle(spark: Any, api: Api, tmp_path: Path, killed_at: int) -> None:
    """After a kill -9 while a page is asked for, the next run asks for that one again and for no other."""
    pages = by_cursor([[record(1, id=3 * page + n) for n in range(3)] for page in range(30)])
    reached, go_on = threading.Event(), threading.Event()

    def answer(request: Request) -> Answer:
        if len(api.requests) == killed_at:
            reached.set()
            go_on.wait()
        return pages(request)

    api.answer = answer
    options = {"url": api.url, "requests_per_second": 10_000, **CURSOR}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(options), json.dumps(COLUMNS)], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    try:
        assert reached.wait(120)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        go_on.set()
    assert len(spooled()) == 2 * (killed_at - 1)
    batches, _ = run(spark, reader(api, **CURSOR))
    assert ids(batches) == [list(range(90))]
    cursors = [query.get("cursor", "p0") for query in api.queries]
    assert sorted(set(cursors)) == sorted(f"p{page}" for page in range(30))
    assert len(cursors) == 31
    assert spooled() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://h/x"}, "must start with http"),
        ({"url": "http://ann:hunter2@h/x"}, "use auth"),
        ({"headers": {"Authorization": "Bearer x"}}, "use auth"),
        ({"headers": {"X": "a\nb"}}, "cannot be sent"),
        ({"cursor": {"path": "a"}, "page": {}, "records": "r"}, "one of cursor, page, link"),
        ({"cursor": {"path": "a"}}, "set records"),
        ({"link": {"path": "a"}}, "set records"),
        ({"oldest_first": True, "since": {"parameter": "s", "field": "f"}}, "leave oldest_first out"),
        ({"since": {"parameter": "s", "field": "f", "overlap": "soon"}}, "a length of time"),
        ({"auth": {"kind": "token", "secret": "x"}}, "bearer"),
        ({"page_size": 3}, "page_size"),
    ],
)
def test_options_that_do_not_fit(options: Row, message: str) -> None:
    """Options that contradict each other, or hold a secret, are refused."""
    with pytest.raises(ValidationError, match=message):
        Options.model_validate({"url": "https://h/x"} | options)
