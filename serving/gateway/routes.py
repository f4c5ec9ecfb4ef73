"""The routes as Envoy reads them: what of them changes with `traffic`, and the rest, which follows from the settings."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from contracts.settings import Settings

ROUTES = OURS = "cartwheel"
DECIDED = "x-cartwheel-decided"
"""The header by which the filter says that it has chosen a version. Without, no request reaches a model."""
MODEL_CLUSTER, SHADOW_CLUSTER, GRPC_CLUSTER, NOWHERE_CLUSTER = "model", "shadow", "grpc", "nowhere"
RPC_PREFIX = "/tensorflow.serving."
RPCS = ("PredictionService/Predict", "PredictionService/GetModelMetadata", "ModelService/GetModelStatus")
"""What may be asked by gRPC: not what changes a model server."""
FILTER = "envoy.filters.http.lua"
_MILLION = 1_000_000


def typed(kind: str, **values: Any) -> dict[str, Any]:
    """A message that says of what type of Envoy's it is."""
    return {"@type": f"type.googleapis.com/envoy.{kind}"} | values


def discovery(state: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The `DiscoveryResponse` with all routes; its version is the hash of what it holds."""
    routes = route_configuration(state, settings)
    revision = hashlib.sha256(json.dumps(routes, sort_keys=True).encode()).hexdigest()[:16]
    return {"version_info": revision, "resources": [typed("config.route.v3.RouteConfiguration", **routes)]}


def state(response: dict[str, Any]) -> dict[str, Any]:
    """The state that `discovery` was given."""
    (host,) = response["resources"][0]["virtual_hosts"]
    metadata = next(route["metadata"] for route in host["routes"] if "metadata" in route)
    return dict(metadata["filter_metadata"][FILTER])


def route_configuration(state: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The `RouteConfiguration`: liveness, predictions, and what else TensorFlow Serving answers about the model."""
    cors = {"envoy.filters.http.cors": _cors(settings)} if settings.gateway_cors_origins else {}
    says = {"x-cartwheel-arm": "arm", "x-cartwheel-model-version": "version"}
    base = {
        "response_headers_to_add": [
            {"header": {"key": header, "value": f"%DYNAMIC_METADATA({OURS}:request:{name})%"}}
            for header, name in says.items()
        ],
        "metadata": {"filter_metadata": {FILTER: {name: value for name, value in state.items() if value is not None}}},
        "typed_per_filter_config": cors,
    }
    action: dict[str, Any] = {
        "cluster": MODEL_CLUSTER,
        "timeout": f"{settings.gateway_timeout_ms / 1000:g}s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [503],
            "num_retries": 2,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
                }
            ],
            "host_selection_retry_max_attempts": 3,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.02s"},
        },
    }
    mirrored = dict(action)
    if state["shadow"] is not None and state["shadow_share"] > 0:
        share = {"numerator": round(state["shadow_share"] * _MILLION), "denominator": "MILLION"}
        mirrored["request_mirror_policies"] = [
            {"cluster": SHADOW_CLUSTER, "runtime_fraction": {"default_value": share}}
        ]
    model = f"/v1/models/{settings.model}"
    which = r"(/(versions|labels)/[^/:]+)?"
    decided = {"headers": [{"name": DECIDED, "present_match": True}]}
    # No direct response: Envoy would skip the rules for other origins on it.
    undecided = {"cluster": NOWHERE_CLUSTER}
    entries: list[dict[str, Any]] = [
        {"match": {"path": "/livez"}, "direct_response": {"status": 200, "body": {"inline_string": "live\n"}}}
    ]
    matches: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"safe_regex": {"regex": model + which + verb}}, to)
        for verb, to in ((":predict", mirrored), ("(/metadata)?", action))
    ]
    if settings.serving_grpc_urls:
        by_grpc = action | {
            "cluster": GRPC_CLUSTER,
            "retry_policy": action["retry_policy"] | {"retry_on": "connect-failure,refused-stream,reset,unavailable"},
        }
        matches += [({"path": RPC_PREFIX + rpc, "grpc": {}}, by_grpc) for rpc in RPCS]
    for match, to in matches:
        entries += [{"match": match | decided, "route": to} | base, {"match": match, "route": undecided} | base]
    return {"name": ROUTES, "virtual_hosts": [{"name": ROUTES, "domains": ["*"], "routes": entries}]}


def _cors(settings: Settings) -> dict[str, Any]:
    origins = [origin.strip() for origin in settings.gateway_cors_origins.split(",") if origin.strip()]
    return typed(
        "extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[{"exact": origin} for origin in origins],
        allow_methods="GET, POST",
        allow_headers="authorization, content-type",
        expose_headers="x-request-id, x-cartwheel-arm, x-cartwheel-model-version, x-cartwheel-fallback",
        max_age="600",
        forward_not_matching_preflights=False,
    )
