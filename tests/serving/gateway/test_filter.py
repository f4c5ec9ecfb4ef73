"""The filter's functions, run by the LuaJIT that Envoy runs them by."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from lupa.luajit21 import LuaError, LuaRuntime
from tensorflow_serving.apis import predict_pb2

from contracts.settings import settings
from serving.gateway import bootstrap

SOURCE = bootstrap.filter_source(settings())

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def lua() -> Any:
    runtime = LuaRuntime(encoding="utf-8")
    runtime.execute(SOURCE)
    return runtime


def as_python(lua: Any, value: Any, like: Any) -> Any:
    """A value that the filter read, in the shape of what it should be; a table says not whether it is a list."""
    if isinstance(like, list):
        return [as_python(lua, value[place + 1], each) for place, each in enumerate(like)] + list(value)[len(like) :]
    if isinstance(like, dict):
        return {name: as_python(lua, value[name], like.get(name)) for name in value}
    if like is None:  # a table of its own
        return None if len(list(value)) == 0 else value
    return value


@given(values, st.booleans(), st.sampled_from([None, 1]))
@example([[], {}, {"": [None]}], False, None)
@example('\U0001f600\u00e9\\"/\n\x7f', True, None)
def test_json_is_read_as_python_reads_it(lua: Any, value: Any, ascii_only: bool, indent: int | None) -> None:
    """Any JSON, with escapes or without, with white space or without."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert as_python(lua, lua.globals().read_json(text), value) == value


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1,]", '{"a" 1}', '"\\x"', '"\\u12"', '"\\ud83d"', '"open', "nul", "[1] 2", "{1: 2}", "[" * 100, "--1"],
)
def test_what_is_no_json_is_refused(lua: Any, text: str) -> None:
    """An error, never a guess; the request goes on, and the model server says what is wrong with it."""
    with pytest.raises(LuaError):
        lua.globals().read_json(text)
    assert list(lua.globals().users_of(text).values()) == []


@pytest.mark.parametrize(
    ("request_body", "users"),
    [
        ({"instances": [{"user_id": "a"}]}, ["a"]),
        ({"instances": [{"user_id": "a"}, {"user_id": "b"}], "signature_name": "x"}, ["a", "b"]),
        ({"instances": ["a", "b"]}, ["a", "b"]),
        ({"inputs": {"user_id": ["a", "b"]}}, ["a", "b"]),
        ({"inputs": {"user_id": "a"}}, ["a"]),
        ({"inputs": ["a"]}, ["a"]),
        ({"inputs": "a"}, ["a"]),
        ({"instances": [{"item_id": ["1"], "age_days": [2.0]}]}, []),
        ({"inputs": {"item_id": [["1"]], "age_days": [[2.0]]}}, []),
        ({"instances": [{"user_id": {"b64": "YQ=="}}]}, []),
        ({"instances": [{"user_id": 7}]}, []),
        ({"instances": []}, []),
        ({"instances": None, "inputs": None}, []),
        ({}, []),
        ([], []),
        ("a", []),
    ],
)
def test_users_of_a_request(lua: Any, request_body: Any, users: list[str]) -> None:
    """Both forms of TensorFlow Serving's, and no user where the request names none."""
    assert list(lua.globals().users_of(json.dumps(request_body)).values()) == users


def fraction(text: str) -> float:
    """FNV-1a of 32 bits with murmur3's finish, over 2**32."""
    number = 2166136261
    for byte in text.encode():
        number = (number ^ byte) * 16777619 % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        number = (number ^ number >> shift) * factor % 2**32
    return (number ^ number >> 16) / 2**32


@given(texts)
@example("")
def test_the_hash_is_the_one_it_says(lua: Any, text: str) -> None:
    """To the last bit, so that anybody can tell who is in which arm."""
    assert lua.globals().fraction_of(text) == fraction(text)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_a_share_is_exact_over_many_users_and_grows_without_moving_anybody(lua: Any, share: float) -> None:
    """Of a million users the share is right to 0.1 %; with a larger share everybody who was in it stays."""
    count = lua.eval(
        """function(share)
            local small, large, left = 0, 0, 0
            for number = 1, 1000000 do
                local users = {"user-" .. number}
                local before = arm_of(users, {canary = 7, canary_share = share})
                local after = arm_of(users, {canary = 7, canary_share = share * 1.5})
                if before == "canary" then small = small + 1 end
                if after == "canary" then large = large + 1 end
                if before == "canary" and after ~= "canary" then left = left + 1 end
            end
            return small, large, left
        end"""
    )
    small, large, left = count(share)
    assert abs(small / 1e6 - share) < 0.001
    assert abs(large / 1e6 - 1.5 * share) < 0.001
    assert left == 0


def test_who_is_in_the_canary(lua: Any) -> None:
    """Nobody without one, nobody of several at once; another canary gets other users."""
    arm_of, table = lua.globals().arm_of, lua.table_from
    nobody, everybody = {"canary_share": 1.0}, {"canary": 7, "canary_share": 1.0}
    assert arm_of(table(["a"]), table(nobody)) == "stable"
    assert arm_of(table(["a"]), table(everybody)) == "canary"
    assert arm_of(table(["a"]), table({"canary": 7, "canary_share": 0.0})) == "stable"
    assert arm_of(table(["a", "b"]), table(everybody)) == "stable"
    assert arm_of(table([]), table(everybody)) == "stable"
    chosen = {
        version: [arm_of(table([str(user)]), table({"canary": version, "canary_share": 0.5})) for user in range(1000)]
        for version in (7, 8)
    }
    agreeing = sum(first == second for first, second in zip(chosen[7], chosen[8], strict=True))
    assert 400 < agreeing < 600


M = "/v1/models/recommender"


@pytest.mark.parametrize(
    ("path", "arm", "decided"),
    [
        (f"{M}:predict", "stable", ("stable", 3, f"{M}/versions/3:predict")),
        (f"{M}:predict", "canary", ("canary", 4, f"{M}/versions/4:predict")),
        (f"{M}/metadata", "stable", ("stable", 3, f"{M}/versions/3/metadata")),
        (f"{M}/labels/stable:predict", "canary", ("stable", 3, f"{M}/versions/3:predict")),
        (f"{M}/labels/canary:predict", "stable", ("canary", 4, f"{M}/versions/4:predict")),
        (f"{M}/labels/canary/metadata", "stable", ("canary", 4, f"{M}/versions/4/metadata")),
        (f"{M}/labels/other:predict", "stable", ("pinned", None, f"{M}/labels/other:predict")),
        (f"{M}/versions/9:predict", "canary", ("pinned", "9", f"{M}/versions/9:predict")),
        (f"{M}/versions/9", "stable", ("pinned", "9", f"{M}/versions/9")),
        (M, "stable", ("pinned", None, M)),
    ],
)
def test_a_path_names_its_version(lua: Any, path: str, arm: str, decided: tuple[Any, ...]) -> None:
    """Who names none gets one; who names one gets that."""
    assert lua.globals().resolve(path, arm, lua.table_from({"stable": 3, "canary": 4})) == decided


def test_a_path_to_an_arm_without_a_version_leads_nowhere(lua: Any) -> None:
    """The filter refuses it then."""
    assert lua.globals().resolve(f"{M}:predict", "stable", lua.table_from({})) == ("stable", None, None)


# Protobuf, against the real one


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """The filter, whose texts are bytes."""
    runtime = LuaRuntime(encoding=None)
    runtime.execute(SOURCE.encode())
    return runtime


specs = st.fixed_dictionaries(
    {},
    optional={"name": texts, "signature_name": texts},
) | st.builds(
    lambda name, choice: {"name": name} | choice,
    texts,
    st.builds(lambda version: {"version": {"value": version}}, st.integers(0, 2**50))
    | st.builds(lambda label: {"version_label": label}, texts),
)


@given(specs, st.lists(texts, max_size=5), st.integers(1, 2**50))
def test_a_request_by_grpc_is_read_and_asks_for_one_version(
    bytewise: Any, spec: Any, users: list[str], stable: int
) -> None:
    """The filter reads what protobuf wrote, and protobuf what the filter added: all as before, but for the version."""
    message = predict_pb2.PredictRequest(model_spec=spec)
    message.inputs["other"].float_val.append(1.0)
    message.inputs["user_id"].string_val.extend(user.encode() for user in users)
    functions = bytewise.globals()
    request = functions.read_request(functions.read_frame(b"\0" * 5 + message.SerializeToString()), True)
    assert list(request.users.values()) == [user.encode() for user in users]
    assert (request.model or b"").decode() == spec.get("name", "")
    assert request.version == spec.get("version", {}).get("value")
    assert (request.label or b"").decode() == spec.get("version_label", "")
    traffic = bytewise.table_from({b"stable": stable})
    arm, version, added = functions.resolve_message(request, b"stable", traffic)
    routed = predict_pb2.PredictRequest.FromString(message.SerializeToString() + added)
    if spec.keys() & {"version", "version_label"} and spec.get("version_label") != "stable":
        assert (arm, routed) == (b"pinned", message)
        return
    assert (arm, version) == (b"stable", stable)
    message.model_spec.version.value = stable
    assert routed == message


@given(st.lists(st.tuples(texts, st.floats(width=32, allow_nan=False)), min_size=1, max_size=6), st.integers(1, 3))
def test_an_answer_by_grpc_is_logged_as_one_by_rest(bytewise: Any, row: list[tuple[str, float]], size: int) -> None:
    """Items as they are, scores as floats have them; what is infinite is none."""
    response = predict_pb2.PredictResponse()
    items, scores = ([[pair[place] for pair in row]] * size for place in (0, 1))
    response.outputs["items"].CopyFrom(tf.make_tensor_proto(items, tf.string))
    response.outputs["scores"].CopyFrom(tf.make_tensor_proto(scores, tf.float32))
    expected = [[pytest.approx(each, rel=1e-7) if math.isfinite(each) else None for each in row] for row in scores]
    shown = json.loads(bytewise.globals().shown_by(response.SerializeToString()))
    assert shown == {"outputs": {"items": items, "scores": expected}}


@pytest.mark.parametrize("bytes_", [b"\x0a", b"\x0a\x05x", b"\x80", b"\x0b", b"\x0d\0\0"])
def test_what_is_no_message_is_refused(bytewise: Any, bytes_: bytes) -> None:
    """Cut off, or of a kind that there is not."""
    with pytest.raises(LuaError):
        bytewise.globals().read_message(bytes_)


def test_a_compressed_message_is_refused(bytewise: Any) -> None:
    with pytest.raises(LuaError):
        bytewise.globals().read_frame(b"\1\0\0\0\0")
    message = b"x" * 70_000
    assert bytewise.globals().frame(message) == b"\0" + len(message).to_bytes(4, "big") + message
