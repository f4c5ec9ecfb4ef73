"""A local stand-in for `tensorflow_model_server`, for development on machines without that binary.

Same flags, config file, REST and gRPC interface, version policies, labels and metric names; one Python
process underneath. Never size production by it.
"""

from __future__ import annotations

NAME = "Cartwheel local model server 0.1.0 (a development stand-in for TensorFlow ModelServer, not for production)"
HEADER = ("x-cartwheel-local-server", "development")
"""Response header (REST) and initial metadata (gRPC) by which a client knows what it talks to."""
