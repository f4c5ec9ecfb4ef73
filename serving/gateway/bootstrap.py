"""Envoy's own configuration: listeners, filters, clusters, limits; all that a change of versions leaves alone."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi

from contracts.exposures import admin_socket, current_log
from contracts.settings import Settings
from serving.gateway.routes import (
    DECIDED,
    FILTER,
    GRPC_CLUSTER,
    MODEL_CLUSTER,
    NOWHERE_CLUSTER,
    OURS,
    ROUTES,
    RPC_PREFIX,
    SHADOW_CLUSTER,
    typed,
)

JWT_FILTER = "envoy.filters.http.jwt_authn"
HEADERS_TIMEOUT_S, BODY_TIMEOUT_S, IDLE_TIMEOUT_S = 5, 10, 300
MAX_CONNECTIONS, MAX_REQUESTS, MAX_PENDING = 10_000, 256, 128
HEAP_MIB = 512
LATENCY_BUCKETS_MS = [1, 2, 3, 5, 8, 13, 20, 35, 50, 100, 200, 500, 1000, 2000, 5000]
_FALLBACK_FLAGS = ["UH", "UF", "UC", "UT", "UO", "URX", "LR", "UR"]
_FILTER_FILE = Path(__file__).with_name("filter.lua")
_SHADOW_FILTER = """
function envoy_on_request(handle)
  local headers = handle:headers()
  local version = headers:get("x-cartwheel-shadow")
  if version then
    headers:replace(":path", string.gsub(headers:get(":path"), "/versions/%d+", "/versions/" .. version))
  end
end
"""


def _extension(name: str, kind: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": typed(kind, **values)}


def bootstrap(settings: Settings) -> dict[str, Any]:
    """The `Bootstrap` as these settings ask for it."""
    listeners = [_gateway_listener(settings), _metrics_listener(settings)]
    clusters = [
        _model_cluster(MODEL_CLUSTER, settings),
        _model_cluster(SHADOW_CLUSTER, settings),
        {"name": NOWHERE_CLUSTER, "type": "STATIC", "load_assignment": _assignment(NOWHERE_CLUSTER, [])},
        {
            "name": "admin",
            "type": "STATIC",
            "load_assignment": _assignment("admin", [{"pipe": {"path": str(admin_socket())}}]),
        },
    ]
    if settings.serving_grpc_urls:
        clusters.append(_model_cluster(GRPC_CLUSTER, settings))
    if settings.gateway_otlp_url:
        clusters.append(_collector_cluster(settings.gateway_otlp_url))
    return {
        "node": {"id": "cartwheel-gateway", "cluster": OURS},
        # Whoever reaches it can stop Envoy: a socket that only the owner's account can open.
        "admin": {"address": {"pipe": {"path": str(admin_socket()), "mode": 0o600}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "overload_manager": _overload_manager(),
        "stats_config": {"histogram_bucket_settings": [{"match": {"prefix": OURS}, "buckets": LATENCY_BUCKETS_MS}]},
    }


def jwt_path(settings: Settings) -> Path:
    """The filter that checks tokens, with the public keys in it: a discovery response, replaced as a whole."""
    return settings.gateway_dir / "tokens.json"


def certificate_path(settings: Settings) -> Path:
    """Names the files of the certificate, where there is one."""
    return settings.gateway_dir / "certificate.json"


def jwt_discovery(jwks: str) -> dict[str, Any]:
    """The filter that lets in who holds a token that one of the keys (JWKS) has signed, for REST and gRPC."""
    provider = {
        "issuer": OURS,
        "local_jwks": {"inline_string": jwks},
        "require_expiration": True,
        "payload_in_metadata": "claims",
        # Checking a signature costs more than all the rest. The cache goes with the keys: a new set begins an empty one.
        "jwt_cache_config": {"jwt_cache_size": 1000},
        "clock_skew_seconds": 5,
    }
    config = typed(
        "extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers={OURS: provider},
        rules=[{"match": {"prefix": prefix}, "requires": {"provider_name": OURS}} for prefix in ("/v1/", RPC_PREFIX)],
    )
    return {"resources": [typed("config.core.v3.TypedExtensionConfig", name=JWT_FILTER, typed_config=config)]}


def _gateway_listener(settings: Settings) -> dict[str, Any]:
    chain: dict[str, Any] = {
        "filters": [_extension("envoy.filters.network.http_connection_manager", _HCM, **_connection_manager(settings))]
    }
    if settings.gateway_tls_dir:
        chain["transport_socket"] = _extension(
            "envoy.transport_sockets.tls",
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "tls_certificate_sds_secret_configs": [
                    {"name": "gateway", "sds_config": _by_file(certificate_path(settings))}
                ],
            },
        )
    return {
        "name": "gateway",
        "address": _address(settings.host, settings.gateway_port),
        "per_connection_buffer_limit_bytes": 4 * settings.gateway_max_body_kib * 1024,
        "filter_chains": [chain],
    }


_HCM = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def certificate_discovery(folder: Path) -> dict[str, Any]:
    """The secret that names `tls.crt` and `tls.key` of a folder, read again when that folder changes."""
    return {
        "resources": [
            typed(
                "extensions.transport_sockets.tls.v3.Secret",
                name="gateway",
                tls_certificate={
                    "certificate_chain": {"filename": str(folder / "tls.crt")},
                    "private_key": {"filename": str(folder / "tls.key")},
                    "watched_directory": {"path": str(folder)},
                },
            )
        ]
    }


def _connection_manager(settings: Settings) -> dict[str, Any]:
    tracing = {}
    if settings.gateway_otlp_url:
        tracer = _extension(
            "envoy.tracers.opentelemetry",
            "config.trace.v3.OpenTelemetryConfig",
            service_name="cartwheel-gateway",
            http_service={
                "http_uri": {
                    "uri": f"{settings.gateway_otlp_url.rstrip('/')}/v1/traces",
                    "cluster": "collector",
                    "timeout": "1s",
                }
            },
        )
        tracing = {"tracing": {"provider": tracer}}
    return {
        "stat_prefix": "gateway",
        "rds": {"route_config_name": ROUTES, "config_source": _by_file(settings.gateway_dir / "routes.json")},
        "http_filters": _filters(settings),
        "access_log": [_exposures(settings), _measures(is_grpc=False), _measures(is_grpc=True)],
        "local_reply_config": _local_replies(settings),
        "use_remote_address": True,
        "generate_request_id": True,
        "always_set_request_id_in_response": True,
        # A request id names an exposure: nobody outside may choose it.
        "early_header_mutation_extensions": [
            _extension(
                "envoy.http.early_header_mutation.header_mutation",
                "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                mutations=[{"remove": name} for name in ("x-request-id", "x-cartwheel-shadow", DECIDED)],
            )
        ],
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {
            "idle_timeout": f"{IDLE_TIMEOUT_S}s",
            "max_headers_count": 64,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "request_headers_timeout": f"{HEADERS_TIMEOUT_S}s",
        "request_timeout": f"{BODY_TIMEOUT_S}s",
        "stream_idle_timeout": f"{2 * BODY_TIMEOUT_S}s",
        "delayed_close_timeout": "1s",
        "http2_protocol_options": {
            "max_concurrent_streams": 128,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1048576,
        },
    } | tracing


def _filters(settings: Settings) -> list[dict[str, Any]]:
    ready = _extension(
        "envoy.filters.http.health_check",
        "extensions.filters.http.health_check.v3.HealthCheck",
        pass_through_mode=False,
        headers=[{"name": ":path", "string_match": {"exact": "/readyz"}}],
        cluster_min_healthy_percentages={MODEL_CLUSTER: {"value": 1}},
    )
    tokens = {
        "name": JWT_FILTER,
        "config_discovery": {
            "config_source": _by_file(jwt_path(settings)),
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"],
        },
    }
    per_client = {
        "max_tokens": settings.gateway_requests_per_s,
        "tokens_per_fill": settings.gateway_requests_per_s,
        "fill_interval": "1s",
    }
    client = {
        "descriptor_key": "client",
        "metadata_key": {"key": JWT_FILTER, "path": [{"key": "claims"}, {"key": "sub"}]},
    }
    enabled = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    limit = _extension(
        "envoy.filters.http.local_ratelimit",
        "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="gateway",
        token_bucket=per_client | {"max_tokens": 1_000_000, "tokens_per_fill": 1_000_000},
        # One bucket for each client, as its token names it.
        descriptors=[{"entries": [{"key": "client"}], "token_bucket": per_client}],
        rate_limits=[{"actions": [{"metadata": client}]}],
        max_dynamic_descriptors=1000,
        rate_limited_as_resource_exhausted=True,
        filter_enabled=enabled,
        filter_enforced=enabled,
        response_headers_to_add=[{"header": {"key": "retry-after", "value": "1"}}],
    )
    size = _extension(
        "envoy.filters.http.buffer",
        "extensions.filters.http.buffer.v3.Buffer",
        max_request_bytes=settings.gateway_max_body_kib * 1024,
    )
    lua = _extension(
        FILTER,
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": filter_source(settings)},
    )
    router = _extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")
    cors = _extension("envoy.filters.http.cors", "extensions.filters.http.cors.v3.Cors")
    allowed_cors = [cors] if settings.gateway_cors_origins else []
    return [ready, *allowed_cors, tokens, limit, size, lua, router]


def filter_source(settings: Settings) -> str:
    """The filter, which knows the model's name."""
    return f'local MODEL = "{settings.model}"\n' + _FILTER_FILE.read_text(encoding="utf-8")


def _note(name: str) -> str:
    return f"%DYNAMIC_METADATA({OURS}:request:{name})%"


def _is_note(name: str, value: Any) -> dict[str, Any]:
    return {
        "metadata_filter": {
            "matcher": {"filter": OURS, "path": [{"key": "request"}, {"key": name}], "value": value},
            "match_if_key_not_found": False,
        }
    }


def _exposures(settings: Settings) -> dict[str, Any]:
    """One line for each prediction that was answered; `docs/gateway.md` says what is in it."""
    log = _extension(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(current_log()),
        log_format={
            "json_format": {
                "request_id": "%REQ(X-REQUEST-ID)%",
                "served_at": "%START_TIME(%Y-%m-%dT%H:%M:%S.%6fZ)%",
                "replayed_at": _note("served_at"),
                "client": _note("client"),
                "user_ids": _note("users"),
                "arm": _note("arm"),
                "model_version": _note("version"),
                "step": _note("step"),
                "fallback": "%RESP(X-CARTWHEEL-FALLBACK)%",
                "response": f"%DYNAMIC_METADATA({OURS}:response)%",
                "latency_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
            }
        },
    )
    return log | {
        "filter": {
            "and_filter": {
                "filters": [
                    _is_note("is_prediction", {"bool_match": True}),
                    _status("EQ", 200),
                ]
            }
        }
    }


def _measures(*, is_grpc: bool) -> dict[str, Any]:
    """Requests and their time by arm, version, step of the rollout and status; of gRPC the one that HTTP has for it."""
    tags = [
        {"name": "arm", "value_format": _note("arm")},
        {"name": "model_version", "value_format": _note("version")},
        {"name": "step", "value_format": _note("step")},
        {"name": "status", "value_format": _note("status") if is_grpc else "%RESPONSE_CODE%"},
        {"name": "fallback", "value_format": "%RESP(X-CARTWHEEL-FALLBACK)%"},
    ]
    logger = _extension(
        "envoy.access_loggers.stats",
        "extensions.access_loggers.stats.v3.Config",
        stats_scope={"prefix": OURS},
        counters=[{"stat": {"name": "requests", "tags": tags}, "value_fixed": 1}],
        histograms=[
            {"stat": {"name": "latency_ms", "tags": tags}, "unit": "Milliseconds", "value_format": "%DURATION%"}
        ],
    )
    filters = [_is_note("arm", {"present_match": True}), _is_note("is_grpc", {"bool_match": is_grpc})]
    return logger | {"filter": {"and_filter": {"filters": filters}}}


def _local_replies(settings: Settings) -> dict[str, Any]:
    """What the gateway says itself: TensorFlow Serving's form of an error, or the list of what is popular."""
    mappers = []
    if settings.gateway_fallback:
        mappers.append(
            {
                "filter": {
                    "and_filter": {
                        "filters": [
                            {"response_flag_filter": {"flags": _FALLBACK_FLAGS}},
                            _is_note("has_fallback", {"bool_match": True}),
                        ]
                    }
                },
                "status_code": 200,
                "body": {"inline_string": "{}"},  # the filter fills it in, once for each user
                "headers_to_add": [{"header": {"key": "x-cartwheel-fallback", "value": "popular"}}],
            }
        )
    # What is no error is left as it is.
    refusals = [(503, 503, {"headers_to_add": [{"header": {"key": "retry-after", "value": "1"}}]}), (400, 599, {})]
    # gRPC has a form of its own for errors.
    is_rest = {
        "header_filter": {
            "header": {
                "name": "content-type",
                "string_match": {"prefix": "application/grpc"},
                "invert_match": True,
                "treat_missing_header_as_empty": True,
            }
        }
    }
    mappers += [
        {
            "filter": {"and_filter": {"filters": [is_rest, _status("GE", first), _status("LE", last)]}},
            "body_format_override": {
                "json_format": {"error": "%LOCAL_REPLY_BODY%"},
                "content_type": "application/json",
            },
        }
        | added
        for first, last, added in refusals
    ]
    return {"mappers": mappers}


def _status(operator: str, code: int) -> dict[str, Any]:
    return {
        "status_code_filter": {"comparison": {"op": operator, "value": {"default_value": code, "runtime_key": "none"}}}
    }


def _metrics_listener(settings: Settings) -> dict[str, Any]:
    """Prometheus' page alone, of all that the admin interface can do."""
    manager = {
        "stat_prefix": "metrics",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "metrics",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"path": "/metrics"},
                            "route": {"cluster": "admin", "prefix_rewrite": "/stats/prometheus", "timeout": "5s"},
                        }
                    ],
                }
            ]
        },
        "http_filters": [_extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
    }
    return {
        "name": "metrics",
        "address": _address(settings.host, settings.gateway_metrics_port),
        "filter_chains": [{"filters": [_extension("envoy.filters.network.http_connection_manager", _HCM, **manager)]}],
    }


def _model_cluster(name: str, settings: Settings) -> dict[str, Any]:
    """The model servers. The shadow's are the same ones, with limits of their own: it must take nothing from others."""
    urls = settings.serving_grpc_urls if name == GRPC_CLUSTER else settings.serving_urls
    protocol = "http2_protocol_options" if name == GRPC_CLUSTER else "http_protocol_options"
    options: dict[str, Any] = {
        "explicit_http_config": {protocol: {}},
        "common_http_protocol_options": {"idle_timeout": "60s"},
    }
    if name == SHADOW_CLUSTER:
        options["http_filters"] = [
            _extension(
                "envoy.filters.http.lua",
                "extensions.filters.http.lua.v3.Lua",
                default_source_code={"inline_string": _SHADOW_FILTER},
            ),
            _extension("envoy.filters.http.upstream_codec", "extensions.filters.http.upstream_codec.v3.UpstreamCodec"),
        ]
    size = MAX_REQUESTS // 8 if name == SHADOW_CLUSTER else MAX_REQUESTS
    addresses = [_url_address(url) for url in urls]
    cluster: dict[str, Any] = {
        "name": name,
        # A socket's path is no name to look up.
        "type": "STATIC" if any("pipe" in address for address in addresses) else "STRICT_DNS",
        "dns_lookup_family": "ALL",
        "connect_timeout": "0.25s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": 4 * settings.gateway_max_body_kib * 1024,
        "load_assignment": _assignment(name, addresses),
        # With none that is healthy all are asked: one that was merely slow to say so answers, one that is dead refuses.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": size,
                    "max_pending_requests": MAX_PENDING,
                    "max_requests": size,
                    "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 10},
                }
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "extensions.upstreams.http.v3.HttpProtocolOptions", **options
            )
        },
    }
    if name == MODEL_CLUSTER:
        cluster["health_checks"] = [
            {
                "timeout": "2s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                # A model without a labelled version answers nobody yet.
                "http_health_check": {"path": f"/v1/models/{settings.model}/labels/stable/metadata"},
            }
        ]
    if name != SHADOW_CLUSTER:
        cluster["outlier_detection"] = {
            "consecutive_5xx": 5,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        }
    return cluster | _encryption(urls, settings.serving_ca_file)


def _collector_cluster(url: str) -> dict[str, Any]:
    return {
        "name": "collector",
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": _assignment("collector", [_url_address(url)]),
    } | _encryption([url], "")


def _encryption(urls: Sequence[str], authorities: str) -> dict[str, Any]:
    """TLS where an address asks for it: the certificate must be for that very name, and signed by a known authority."""
    if all(urlsplit(url).scheme != "https" for url in urls):
        return {}
    # Envoy checks names only against a file of authorities that it is told.
    trusted = {"trusted_ca": {"filename": authorities or ssl.get_default_verify_paths().cafile or certifi.where()}}
    context = _extension(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={"validation_context": trusted},
        auto_host_sni=True,
        auto_sni_san_validation=True,
    )
    return {"transport_socket": context}


def _overload_manager() -> dict[str, Any]:
    """Refuse work before memory or connections run out."""

    def at(resource: str, value: float) -> dict[str, Any]:
        return {"name": resource, "threshold": {"value": value}}

    heap, connections = (
        "envoy.resource_monitors.fixed_heap",
        "envoy.resource_monitors.global_downstream_max_connections",
    )
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            _extension(
                heap,
                "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=HEAP_MIB * 2**20,
            ),
            _extension(
                connections,
                "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=MAX_CONNECTIONS,
            ),
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": [at(heap, 0.9)]},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": [at(heap, 0.95)]},
        ],
    }


def _by_file(path: Path) -> dict[str, Any]:
    """A source of configuration that is read again when the file is replaced by a rename."""
    return {
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
        "resource_api_version": "V3",
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _url_address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return {"pipe": {"path": parts.path}}
    return _address(str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80))


def _assignment(name: str, addresses: list[dict[str, Any]]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
