"""The answers to GetModelStatus and GetModelMetadata, the same for REST and gRPC."""

from __future__ import annotations

from typing import Any

from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from serving.local_server.versions import Versions

SIGNATURE_DEF = "signature_def"


def status_response(versions: Versions, name: str, number: int | None) -> Any:
    """`GetModelStatusResponse`.

    Raises:
        StatusError: NOT_FOUND.
    """
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, state, error in versions.states(name, number):
        entry = response.model_version_status.add(version=version, state=state)
        entry.status.error_code = error.code.value[0] if error else 0
        entry.status.error_message = error.message if error else ""
    return response


def metadata_response(versions: Versions, name: str, number: int | None, label: str | None) -> Any:
    """`GetModelMetadataResponse` with the signatures.

    Raises:
        StatusError: as `Versions.use`.
    """
    with versions.use(name, number, label) as (version, model):
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = name
        response.model_spec.version.value = version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, definition in model.signature_defs.items():
            signatures.signature_def[key].CopyFrom(definition)
        response.metadata[SIGNATURE_DEF].Pack(signatures)
    return response
