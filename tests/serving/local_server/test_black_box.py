"""The server as its clients see it, over real REST and gRPC; against TF Serving itself where it is installed."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from serving.local_server.rest import MAX_WAITING

ROW = {"items": ["xa", "xb", "xc"], "scores": pytest.approx([3.1, 2.1, 1.1], abs=1e-6)}


@pytest.fixture
def served(server: Any, base_of: Callable[..., Path], tools: Any) -> Any:
    """The server with versions 1 and 2 of model `shop`, labels stable=1 and canary=2."""
    if server.states("shop").get(1, ("",))[0] != "AVAILABLE":
        server.base = base_of(1, 2)
    server.configure(tools.model_text("shop", server.base, [1, 2], stable=1, canary=2))
    server.wait_state("shop", 1, "AVAILABLE")
    server.wait_state("shop", 2, "AVAILABLE")
    return server


@pytest.fixture
def channel(server: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base path of a model of examples: half of x, and two; x is 0 where an example has none."""
    import tensorflow as tf

    base, v1 = tmp_path_factory.mktemp("halves"), tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None])
        x = tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32, 0.0)})["x"]
        y = 0.5 * x + 2.0
        label = tf.where(y > 2, tf.constant("more"), tf.constant("two"))
        infos = {
            key: v1.saved_model.build_tensor_info(value)
            for key, value in (("in", serialized), ("y", y), ("label", label))
        }

        def signature(method: str, **outputs: str) -> Any:
            method_name = f"tensorflow/serving/{method}"
            chosen = {name: infos[key] for name, key in outputs.items()}
            return v1.saved_model.build_signature_def({"inputs": infos["in"]}, chosen, method_name)

        builder = v1.saved_model.Builder(str(base / "7"))
        definitions = {
            "serving_default": signature("regress", outputs="y"),
            "by_score": signature("classify", scores="y"),
            "by_both": signature("classify", classes="label", scores="y"),
            "without": signature("classify", other="y"),
        }
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=definitions)
        builder.save()
    return base


@pytest.fixture
def examples(server: Any, halves: Path, tools: Any) -> Any:
    """The server with version 7 of the model `halves`."""
    server.configure(tools.model_text("halves", halves))
    server.wait_state("halves", 7, "AVAILABLE")
    return server


@pytest.mark.parametrize(
    ("verb", "request_", "results"),
    [
        ("regress", {"examples": [{"x": 2.0}, {"x": [3.0]}, {}]}, [3.0, 3.5, 2.0]),
        ("regress", {"context": {"x": 8.0}, "examples": [{"x": 2.0}, {"n": 1}]}, [3.0, 6.0]),
        ("classify", {"signature_name": "by_score", "examples": [{"x": 2.2}]}, [[["", 3.1]]]),
        (
            "classify",
            {"signature_name": "by_both", "examples": [{"x": 2.0}, {"s": "a"}]},
            [[["more", 3.0]], [["two", 2.0]]],
        ),
    ],
)
def test_examples(examples: Any, verb: str, request_: Any, results: Any) -> None:
    """Examples are computed by hand; an example's own feature wins over that of the context, numbers are as floats have them."""
    answer = examples.http.post(f"/v1/models/halves/versions/7:{verb}", json=request_)
    assert (answer.status_code, answer.json()) == (200, {"results": results})


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({}, "list/array"),
        ({"examples": []}, "list/array"),
        ({"examples": {"x": 1.0}}, "list/array"),
        ({"examples": [[1.0]]}, "Example must be JSON object"),
        ({"context": [1.0], "examples": [{}]}, "Example must be JSON object"),
        ({"examples": [{"x": [10, None]}]}, "x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [10, {"test": 10}]}]}, "x has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [[10], 20]}]}, "x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": [10, 10.0]}]}, "feature: x expecting type: int64"),
        ({"examples": [{"x": 2**64}]}, "Only int64 is supported"),
        ({"examples": [{"x": 1.7e308}]}, "loss of precision"),
        ({"examples": [{"x": "no number"}]}, "float"),
        ({"examples": [{"x": 1.0}], "signature_name": "nope"}, "nope"),
        ({"examples": [{"x": 1.0}], "signature_name": "by_score"}, "tensorflow/serving/regress"),
        ({"examples": [{"x": 1.0}], "signature_name": 1}, "'signature_name'"),
    ],
)
def test_bad_examples(examples: Any, request_: Any, error: str) -> None:
    """What is no example, no feature, or for a signature of another method is answered 400 and says so."""
    answer = examples.http.post("/v1/models/halves:regress", json=request_)
    assert answer.status_code == 400
    assert error in answer.json()["error"]


def test_grpc_examples(examples: Any, channel: grpc.Channel) -> None:
    """Classify, Regress and both at once give the same by gRPC, and name the version that answered."""
    from tensorflow_serving.apis import classification_pb2, inference_pb2, prediction_service_pb2_grpc, regression_pb2

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    regress, classify = regression_pb2.RegressionRequest(), classification_pb2.ClassificationRequest()
    classify.model_spec.signature_name = "by_both"
    both = inference_pb2.MultiInferenceRequest()
    for request in (regress, classify, both):
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    for request, method in ((regress, "regress"), (classify, "classify")):
        request.model_spec.name = "halves"
        both.tasks.add(model_spec=request.model_spec, method_name=f"tensorflow/serving/{method}")
    regressed, classified = stub.Regress(regress, timeout=10), stub.Classify(classify, timeout=10)
    assert [each.value for each in regressed.result.regressions] == [3.0]
    assert [(each.label, each.score) for each in classified.result.classifications[0].classes] == [("more", 3.0)]
    assert (regressed.model_spec.version.value, classified.model_spec.signature_name) == (7, "by_both")
    assert regressed.model_spec.signature_name == "serving_default"
    results = stub.MultiInference(both, timeout=10).results
    assert [results[0].regression_result, results[1].classification_result] == [regressed.result, classified.result]
    assert [result.model_spec for result in results] == [regressed.model_spec, classified.model_spec]

    def refused(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as failure:
            call(request, timeout=10)
        return failure.value.code(), failure.value.details()

    both.tasks.add(model_spec=regress.model_spec, method_name="tensorflow/serving/regress")
    assert "Duplicate evaluation of signature" in refused(stub.MultiInference, both)[1]
    both.tasks[2].model_spec.name = "another"
    assert "the same model name" in refused(stub.MultiInference, both)[1]
    del both.tasks[1:]
    both.tasks[0].method_name = "tensorflow/serving/predict"
    assert refused(stub.MultiInference, both)[0] is grpc.StatusCode.UNIMPLEMENTED
    classify.model_spec.signature_name = "without"
    assert refused(stub.Classify, classify)[0] is grpc.StatusCode.INVALID_ARGUMENT
    regress.input.Clear()
    assert refused(stub.Regress, regress) == (grpc.StatusCode.INVALID_ARGUMENT, "Input is empty.")


def test_row_format(served: Any) -> None:
    """Rows of named values and bare values of the one input give the same predictions."""
    for instances in ([{"user_id": "x"}], ["x"], [{"user_id": {"b64": base64.b64encode(b"x").decode()}}]):
        answer = served.predict("shop/versions/1", {"instances": instances})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"predictions": [ROW]}


def test_columnar_format(served: Any) -> None:
    """Columns of named tensors and the bare tensor of the one input give the same outputs, accents kept."""
    for inputs in ({"user_id": ["é", "y"]}, ["é", "y"]):
        outputs = served.predict("shop/labels/canary", {"inputs": inputs}).json()["outputs"]
        assert outputs["items"] == [["éa", "éb", "éc"], ["ya", "yb", "yc"]]
        assert outputs["scores"] == [pytest.approx([3.2, 2.2, 1.2], abs=1e-6)] * 2


def test_no_version_is_the_highest(served: Any) -> None:
    """A request that names neither version nor label goes to the highest version loaded."""
    answer = served.predict("shop", {"instances": ["x"]})
    assert answer.json()["predictions"][0]["scores"][0] == pytest.approx(3.2)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        {"instances": [1]},
        {"instances": [{"user_id": 1}]},
        {"instances": [{"other": "x"}]},
        {"instances": ["x", ["y"]]},
        {"instances": []},
        {"instances": [{"user_id": {"b64": "?"}}]},
        {"instances": ["x"], "inputs": ["x"]},
        {"instances": ["x"], "signature_name": "nope"},
    ],
)
def test_bad_requests(served: Any, body: Any) -> None:
    """A request that is no JSON, of the wrong shape or type, or for no signature is answered 400 with an error."""
    answer = served.predict("shop", body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_packed_body_is_unpacked(served: Any) -> None:
    """A body packed with gzip is answered as it is unpacked; one that only says so, or is cut off, is refused."""
    packed = gzip.compress(b'{"instances": ["x"]}')
    for body, code in ((packed, 200), (b'{"instances": ["x"]}', 400), (packed[:-9], 400)):
        answer = served.http.post("/v1/models/shop:predict", content=body, headers={"Content-Encoding": "gzip"})
        assert answer.status_code == code
        assert list(answer.json()) == (["predictions"] if code == 200 else ["error"])


def test_numbers_are_written_as_floats_have_them(served: Any) -> None:
    """The float nearest to 3.1 is written 3.1, without the digits that a double of it has."""
    assert '"scores": [3.1, 2.1, 1.1]' in served.predict("shop/versions/1", {"instances": ["x"]}).text


def test_a_body_without_end_is_refused(served: Any) -> None:
    """More than 32 MiB, also unpacked, are not taken in; the server goes on."""
    if "x-cartwheel-local-server" not in served.http.get("/v1/models/shop").headers:
        pytest.skip("TF Serving has limits of its own")
    bomb = gzip.compress(b" " * (40 * 2**20))
    for body, headers in ((b" " * (33 * 2**20), {}), (bomb, {"Content-Encoding": "gzip"})):
        answer = served.http.post("/v1/models/shop:predict", content=body, headers=headers)
        assert answer.status_code == 400
        assert "larger than 32 MiB" in answer.json()["error"]
    assert served.predict("shop", {"instances": ["x"]}).status_code == 200


@pytest.mark.parametrize(
    ("path", "code"), [("none", 404), ("shop/versions/9", 404), ("shop/labels/none", 400), ("shop/versions/x", 400)]
)
def test_unknown_names(served: Any, path: str, code: int) -> None:
    """An unknown model or version is not found; an unknown label is an invalid argument."""
    answer = served.predict(path, {"instances": ["x"]})
    assert (answer.status_code, list(answer.json())) == (code, ["error"])


def test_status_and_metadata(served: Any) -> None:
    """Status lists every version with its state; metadata gives the signature of the labelled version."""
    assert served.states("shop") == {1: ("AVAILABLE", "OK"), 2: ("AVAILABLE", "OK")}
    metadata = served.http.get("/v1/models/shop/labels/stable/metadata").json()
    assert metadata["model_spec"]["version"] == "1"
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["user_id"]["dtype"] == "DT_STRING"
    assert signature["outputs"]["scores"]["dtype"] == "DT_FLOAT"


def test_metrics(served: Any) -> None:
    """The Prometheus page counts predictions by status under TF Serving's names."""
    served.predict("shop", {"instances": ["x"]})
    page = served.http.get("/monitoring/prometheus/metrics").text
    assert ':tensorflow:serving:request_count{model_name="shop",status="OK"}' in page
    assert ':tensorflow:serving:request_latency_bucket{model_name="shop",API="predict",entrypoint="REST",le="' in page


def test_grpc_predict(served: Any, channel: grpc.Channel) -> None:
    """Predict over gRPC answers strings and floats in typed fields, and names the version that answered."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = "shop", "stable"
    request.inputs["user_id"].CopyFrom(tf.make_tensor_proto(["x"]))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(request, timeout=60)
    assert response.model_spec.version.value == 1
    assert list(response.outputs["items"].string_val) == [b"xa", b"xb", b"xc"]
    assert list(response.outputs["scores"].float_val) == ROW["scores"]

    request.inputs["user_id"].CopyFrom(tf.make_tensor_proto([1]))
    with pytest.raises(grpc.RpcError) as wrong_type:
        stub.Predict(request, timeout=60)
    assert wrong_type.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    request.model_spec.version.value = 9
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Predict(request, timeout=60)
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_grpc_status_and_metadata(served: Any, channel: grpc.Channel) -> None:
    """GetModelStatus and GetModelMetadata answer over gRPC as over REST."""
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        prediction_service_pb2_grpc,
    )

    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "shop"
    versions = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=60)
    assert {entry.version for entry in versions.model_version_status} == {1, 2}
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "shop"
    answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(metadata, timeout=60)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert "serving_default" in signatures.signature_def


def test_label_moves(served: Any, tools: Any) -> None:
    """A used label moves to a version that is loaded, and is refused for one that is not."""
    served.configure(tools.model_text("shop", served.base, [1, 2], stable=2))
    answer = served.predict("shop/labels/stable", {"instances": ["x"]})
    assert answer.json()["predictions"][0]["scores"][0] == pytest.approx(3.2)
    with pytest.raises(grpc.RpcError) as refused:
        served.configure(tools.model_text("shop", served.base, [1, 2, 9], stable=9))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert served.predict("shop/labels/stable", {"instances": ["x"]}).status_code == 200


def test_a_lite_file_answers(server: Any, lite_version: Path, tools: Any, tmp_path: Path) -> None:
    """A LiteRT file beside a SavedModel is preferred by the flag; status, metadata and values are as of any model."""
    (tmp_path / "5").symlink_to(lite_version)
    server.configure(tools.model_text("lite", tmp_path))
    server.wait_state("lite", 5, "AVAILABLE")
    body = {"signature_name": "half", "instances": [{"x": 1.0}, {"x": 4.0}]}
    answer = server.predict("lite/versions/5", body)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [3.5, 5.0]})
    metadata = server.http.get("/v1/models/lite/versions/5/metadata").json()["metadata"]["signature_def"][
        "signature_def"
    ]
    assert [*metadata["half"]["inputs"]] == ["x"]


def test_file_is_polled(server: Any, base_of: Callable[..., Path], tools: Any) -> None:
    """A change of the config file alone is taken up, a broken file is not."""
    base = base_of(1, 2)
    server.config_path.write_text(f"model_config_list {{ {tools.model_text('polled', base, [1])} }}")
    server.wait_state("polled", 1, "AVAILABLE")
    server.config_path.write_text("model_config_list { config {")
    server.config_path.write_text(f"model_config_list {{ {tools.model_text('polled', base, [2])} }}")
    server.wait_state("polled", 2, "AVAILABLE")
    server.wait_state("polled", 1, "END")
    assert server.states("polled")[1] == ("END", "OK")


def test_latest_version_is_discovered(server: Any, exported: Any, base_of: Callable[..., Path], tools: Any) -> None:
    """Under the latest policy a new folder is loaded, and then the old version unloaded."""
    base = base_of(1)
    server.configure(tools.model_text("latest", base))
    server.wait_state("latest", 1, "AVAILABLE")
    shutil.copytree(exported(2), base / "staged")
    (base / "staged").rename(base / "2")
    server.wait_state("latest", 2, "AVAILABLE")
    server.wait_state("latest", 1, "END")


@pytest.mark.parametrize("breakage", ["graph", "warm-up"])
def test_broken_version_ends(server: Any, base_of: Callable[..., Path], tools: Any, breakage: str) -> None:
    """A version that does not load, or fails its warm-up, ENDs with an error while the old one keeps serving."""
    name, base = f"broken-{breakage}", base_of(1, 2)
    if breakage == "graph":
        (base / "2" / "saved_model.pb").write_bytes(b"garbage")
    else:
        _warm_up(base / "2", signature="none")
    server.configure(tools.model_text(name, base, [1]))
    server.wait_state(name, 1, "AVAILABLE")
    server.configure(tools.model_text(name, base, [2]))
    server.wait_state(name, 2, "END")
    states = server.states(name)
    assert states[2][1] != "OK"
    assert states[1] == ("AVAILABLE", "OK")
    assert server.predict(name, {"instances": ["x"]}).json() == {"predictions": [ROW]}


def test_warm_up_passes(server: Any, base_of: Callable[..., Path], tools: Any) -> None:
    """A version whose warm-up records fit its signature becomes AVAILABLE."""
    base = base_of(1)
    _warm_up(base / "1", signature="serving_default")
    server.configure(tools.model_text("warm", base, [1]))
    server.wait_state("warm", 1, "AVAILABLE")


@pytest.mark.parametrize(("is_right", "state"), [(True, "AVAILABLE"), (False, "END")])
def test_warm_up_by_examples(server: Any, halves: Path, tools: Any, tmp_path: Path, is_right: bool, state: str) -> None:
    """Records may be of any kind of request; one whose signature is of another method fails."""
    from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, prediction_log_pb2, regression_pb2

    shutil.copytree(halves, tmp_path / "halves")
    x = {"features": {"feature": {"x": {"float_list": {"value": [2.0]}}}}}
    source = input_pb2.Input(example_list={"examples": [x]})
    spec = {"name": "any", "signature_name": "by_score" if is_right else "serving_default"}
    classify = classification_pb2.ClassificationRequest(model_spec=spec, input=source)
    regress = regression_pb2.RegressionRequest(model_spec={"name": "any"}, input=source)
    task = {"model_spec": {"name": "any"}, "method_name": "tensorflow/serving/regress"}
    both = inference_pb2.MultiInferenceRequest(tasks=[task], input=source)
    _write_records(
        tmp_path / "halves" / "7",
        prediction_log_pb2.PredictionLog(regress_log={"request": regress}),
        prediction_log_pb2.PredictionLog(multi_inference_log={"request": both}),
        prediction_log_pb2.PredictionLog(classify_log={"request": classify}),
    )
    name = f"warm-{state}"
    with nullcontext() if is_right else pytest.raises(grpc.RpcError, match="method_name"):
        server.configure(tools.model_text(name, tmp_path / "halves", [7]))
    server.wait_state(name, 7, state)


def _warm_up(folder: Path, *, signature: str) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "any", signature
    request.inputs["user_id"].CopyFrom(tf.make_tensor_proto(["x"]))
    _write_records(folder, prediction_log_pb2.PredictionLog(predict_log={"request": request}))


def _write_records(folder: Path, *logs: Any) -> None:
    import tensorflow as tf

    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def test_unload_waits_for_requests(server: Any, base_of: Callable[..., Path], tools: Any, tmp_path: Path) -> None:
    """A version no longer named takes no new request but finishes the one it has before it ENDs."""
    base, pipe, started, answers = base_of(1, 2), tmp_path / "pipe", tmp_path / "started", []
    os.mkfifo(pipe)
    server.configure(tools.model_text("busy", base, [1]))
    server.wait_state("busy", 1, "AVAILABLE")
    body = {"signature_name": "blocked", "inputs": {"started": str(started), "pipe": str(pipe)}}
    running = threading.Thread(target=lambda: answers.append(server.predict("busy/versions/1", body)))
    running.start()
    try:
        tools.wait_until(started.exists, "the request to run")
        server.configure(tools.model_text("busy", base, [2]))
        server.wait_state("busy", 1, "UNLOADING")
        assert server.predict("busy/versions/1", {"instances": ["x"]}).status_code == 404
        assert server.predict("busy", {"instances": ["x"]}).status_code == 200
    finally:
        release = os.open(pipe, os.O_RDWR)  # never blocks, and lets the writer go on
        running.join()
        os.close(release)
    assert (answers[0].status_code, answers[0].json()) == (200, {"outputs": "done"})
    server.wait_state("busy", 1, "END")


def test_too_many_at_once_are_told_so(server: Any, base_of: Callable[..., Path], tools: Any, tmp_path: Path) -> None:
    """With every thread busy and the queue full, a request is answered 503 at once; those that wait are answered all."""
    if "x-cartwheel-local-server" not in server.http.get("/v1/models/none").headers:
        pytest.skip("TF Serving has a queue of its own")
    base, pipe, started = base_of(1), tmp_path / "pipe", tmp_path / "started"
    os.mkfifo(pipe)
    server.configure(tools.model_text("full", base, [1]))
    server.wait_state("full", 1, "AVAILABLE")
    body = {"signature_name": "blocked", "inputs": {"started": str(started), "pipe": str(pipe)}}
    places = MAX_WAITING + (os.cpu_count() or 1) + 2
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/full:predict"

    def connections() -> int:
        opened = psutil.Process(server.process.pid).net_connections("tcp")
        return sum(each.laddr.port == server.rest_port and each.status == psutil.CONN_ESTABLISHED for each in opened)

    async def fill() -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
            before = connections()
            waiting = [asyncio.create_task(client.post(url, json=body)) for _ in range(places)]
            while connections() < before + places:  # else the request below might take one of their places
                await asyncio.sleep(0.1)
            while (refused := await client.post(url, json={"instances": ["x"]}, timeout=60)).status_code == 200:
                await asyncio.sleep(0.1)
            assert "Too many requests wait" in refused.json()["error"]
            release = os.open(pipe, os.O_RDWR)  # never blocks, and lets the writers go on
            answers = await asyncio.gather(*waiting)
            os.close(release)
            return [refused.status_code, *{answer.status_code for answer in answers}]

    assert asyncio.run(fill()) == [503, 200]
