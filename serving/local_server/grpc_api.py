"""The gRPC interface of TF Serving: PredictionService and ModelService."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.local_server import HEADER, metrics
from serving.local_server.inference import CLASSIFY, REGRESS, infer, multi_infer
from serving.local_server.messages import SIGNATURE_DEF, metadata_response, status_response
from serving.local_server.saved_model import DEFAULT_SIGNATURE, array_of, proto_of
from serving.local_server.status import StatusError, invalid
from serving.local_server.versions import Versions

_RESPONSES = {CLASSIFY: classification_pb2.ClassificationResponse, REGRESS: regression_pb2.RegressionResponse}

log = logging.getLogger(__name__)


def server(versions: Versions, *, threads: int) -> grpc.Server:
    """The gRPC server, without a port yet."""
    options = [
        # Python's gRPC shares ports by default: two servers would silently split the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    grpc_server = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(versions), grpc_server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(versions), grpc_server)
    return grpc_server


def _answered(context: grpc.ServicerContext, call: Callable[[], Any]) -> Any:
    """The result of the call, its failure as gRPC status."""
    context.send_initial_metadata((HEADER,))
    try:
        return call()
    except StatusError as error:
        context.abort(error.code, error.message)
    except Exception as error:
        log.exception("gRPC request failed")
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def _spec(request: Any) -> tuple[str, int | None, str | None]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    return (
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    def __init__(self, versions: Versions) -> None:
        self.versions = versions

    def _measured(self, api: str, name: str, context: grpc.ServicerContext, call: Callable[[], Any]) -> Any:
        start_s = time.perf_counter()
        try:
            response = _answered(context, call)
        finally:
            code = context.code()
            metrics.count_request(name, code.name if isinstance(code, grpc.StatusCode) else "OK")
        metrics.observe_latency(name, api, "GRPC", time.perf_counter() - start_s)
        return response

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._measured("Predict", request.model_spec.name, context, lambda: _predict(self.versions, request))

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._measured(
            "Classify", request.model_spec.name, context, lambda: _infer(self.versions, request, CLASSIFY)
        )

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._measured(
            "Regress", request.model_spec.name, context, lambda: _infer(self.versions, request, REGRESS)
        )

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:
        name = request.tasks[0].model_spec.name if request.tasks else ""
        return self._measured("MultiInference", name, context, lambda: _multi_infer(self.versions, request))

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        def metadata() -> Any:
            if list(request.metadata_field) != [SIGNATURE_DEF]:
                raise invalid(f"metadata_field must be {SIGNATURE_DEF!r}")
            return metadata_response(self.versions, *_spec(request))

        return _answered(context, metadata)


def _predict(versions: Versions, request: Any) -> Any:
    name, number, label = _spec(request)
    with versions.use(name, number, label) as (version, model):
        signature = model.signature(request.model_spec.signature_name)
        output_names = list(request.output_filter) or list(signature.outputs)
        if unknown := set(output_names) - signature.outputs.keys():
            raise invalid(f"output tensor alias not found in signature: {sorted(unknown)}")
        outputs = signature.run({key: array_of(tensor) for key, tensor in request.inputs.items()})
    response = predict_pb2.PredictResponse()
    _name_model(response.model_spec, request.model_spec, version)
    for key in output_names:
        response.outputs[key].CopyFrom(proto_of(outputs[key]))
    return response


def _infer(versions: Versions, request: Any, method: str) -> Any:
    response = _RESPONSES[method]()
    with versions.use(*_spec(request)) as (version, model):
        response.result.CopyFrom(infer(model, method, request.model_spec.signature_name, request.input))
    _name_model(response.model_spec, request.model_spec, version)
    return response


def _multi_infer(versions: Versions, request: Any) -> Any:
    if not request.tasks:
        raise invalid("Inference request must have at least one task")
    with versions.use(*_spec(request.tasks[0])) as (version, model):
        response = multi_infer(model, request)
    for task, result in zip(request.tasks, response.results, strict=True):
        _name_model(result.model_spec, task.model_spec, version)
    return response


def _name_model(effective: Any, requested: Any, version: int) -> None:
    """Fill in the ModelSpec of an answer."""
    effective.name, effective.signature_name = requested.name, requested.signature_name or DEFAULT_SIGNATURE
    effective.version.value = version


class _Model(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    def __init__(self, versions: Versions) -> None:
        self.versions = versions

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _answered(context, lambda: status_response(self.versions, *_spec(request)[:2]))

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        def reload() -> Any:
            self.versions.apply(request.config)
            return model_management_pb2.ReloadConfigResponse()

        return _answered(context, reload)
