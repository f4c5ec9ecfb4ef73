"""The files that flags name, in the text format of protobuf."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from contracts.errors import InputError

_KINDS = descriptor_pb2.FieldDescriptorProto


def _message(name: str, fields: Mapping[str, int | str], path: Path, flag: str) -> Any:
    """The message in a file, of a type that is not among the published protos.

    Args:
        fields: the kind of each, in the order of their numbers: one of `FieldDescriptorProto`'s types, or the name of a
            published message. A name with a star stands for many values.

    Raises:
        InputError: the file cannot be read, or is no such message.
    """
    from google.protobuf import wrappers_pb2

    described = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package="tensorflow.serving", dependency=[wrappers_pb2.DESCRIPTOR.name]
    )
    message = described.message_type.add(name=name)
    for number, (field, kind) in enumerate(fields.items(), 1):
        label = _KINDS.LABEL_REPEATED if field.endswith("*") else _KINDS.LABEL_OPTIONAL
        of = {"type_name": kind} if isinstance(kind, str) else {"type": kind}
        message.field.add(name=field.rstrip("*"), number=number, label=label, **of)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(described)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))()
    try:
        return text_format.Parse(path.read_text(), config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise InputError(f"no {name}: {error}", where=flag, cure="name a readable file in text format") from None


@dataclass(frozen=True)
class Batching:
    """How requests run together, as TF Serving's `BatchingParameters` and its defaults say."""

    max_batch_size: int = 1000
    """Rows, of one request as of one batch."""
    batch_timeout_micros: int = 0
    """How long a batch waits for more rows once a thread is free for it."""
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    """Sizes that a batch is filled up to."""
    pad_variable_length_inputs: bool = False


def batching(path: Path | None) -> Batching:
    """What the `BatchingParameters` say; the defaults without a file.

    Raises:
        InputError: the file cannot be read, or what it says cannot be.
    """
    if path is None:
        return Batching()
    flag, number = "--batching_parameters_file", ".google.protobuf.Int64Value"
    fields = {
        "max_batch_size": number,
        "batch_timeout_micros": number,
        "max_enqueued_batches": number,
        "num_batch_threads": number,
        "thread_pool_name": ".google.protobuf.StringValue",
        "allowed_batch_sizes*": _KINDS.TYPE_INT64,
        "pad_variable_length_inputs": _KINDS.TYPE_BOOL,
    }
    config = _message("BatchingParameters", fields, path, flag)
    numbers = {
        name: getattr(config, name).value for name, kind in fields.items() if kind == number and config.HasField(name)
    }
    for name, value in numbers.items():
        if value < (name != "batch_timeout_micros"):
            raise InputError(f"{name} is {value}", where=flag, cure="give a positive number")
    parameters = Batching(
        **numbers,
        allowed_batch_sizes=tuple(config.allowed_batch_sizes),
        pad_variable_length_inputs=config.pad_variable_length_inputs,
    )
    sizes = parameters.allowed_batch_sizes
    if sizes and (sizes[-1] != parameters.max_batch_size or sorted({*sizes}) != [*sizes] or sizes[0] < 1):
        # In the words of the real one, as far as it has them.
        raise InputError(
            f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {sizes[-1]}; "
            f"expected {parameters.max_batch_size}",
            where=flag,
            cure="list sizes in ascending order, up to max_batch_size",
        )
    return parameters


def parse_config(text: str, where: str) -> Any:
    """The `ModelServerConfig` in text format.

    Raises:
        InputError: it does not parse.
    """
    from tensorflow_serving.config import model_server_config_pb2

    try:
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        # In the words of the real one, which somebody may look for in the log.
        message = f"Invalid protobuf file: '{where}': no ModelServerConfig: {error}"
        raise InputError(message, where=where, cure="correct its text format") from None


def grpc_credentials(path: Path | None) -> Any:
    """What the `SSLConfig` says that gRPC is encrypted with; None without a file.

    Raises:
        InputError: the file cannot be read, or names no key and certificate.
    """
    if path is None:
        return None
    import grpc

    texts = dict.fromkeys(("server_key", "server_cert", "custom_ca"), _KINDS.TYPE_STRING)
    config = _message("SSLConfig", texts | {"client_verify": _KINDS.TYPE_BOOL}, path, "--ssl_config_file")
    if not config.server_key or not config.server_cert:
        raise InputError(
            "the SSLConfig has no server_key or no server_cert", where="--ssl_config_file", cure="put both in as PEM"
        )
    if config.client_verify and not config.custom_ca:
        raise InputError(
            "the SSLConfig has client_verify and no custom_ca",
            where="--ssl_config_file",
            cure="put the authority in as PEM",
        )
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def monitoring_path(path: Path | None) -> str | None:
    """Path of the Prometheus page as the `MonitoringConfig` sets it, None when it is not enabled.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return None
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(
            f"cannot read it: {error}", where="--monitoring_config_file", cure="name a readable file"
        ) from None
    # The message is not among the published protos; these two fields are all it has.
    if not re.search(r"\benable\s*:\s*(true|1)\b", text):
        return None
    named = re.search(r"""\bpath\s*:\s*["']([^"']*)["']""", text)
    return named[1] if named else "/monitoring/prometheus/metrics"
