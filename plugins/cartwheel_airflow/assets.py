"""The assets that join the DAGs. An event is a hint that wakes the next DAG; the tables say what there is to do."""

from __future__ import annotations

from airflow.sdk import Asset

BRONZE_EVENTS = Asset("bronze_events", group="data")
"""New events have landed. Emitted by ingest_events, consumed by build_features."""

FEATURES = Asset("features", group="data")
"""Features and lists passed their gate. Emitted by build_features, consumed by monitor_recommender."""

TRAINING_REQUEST = Asset("training_request", group="model")
"""Monitoring asks for a new model. Emitted by monitor_recommender, consumed by train_recommender."""

REFRESH_REQUEST = Asset("refresh_request", group="model")
"""Monitoring asks for newer data in the model that serves. Emitted by monitor_recommender, consumed by refresh_recommender."""

CHALLENGER = Asset("challenger", group="model")
"""A model passed the gate and is registered. Emitted by train_recommender and refresh_recommender, consumed by
deploy_recommender."""

CHAMPION = Asset("champion", group="model")
"""A model serves. Emitted by deploy_recommender and rollback_recommender, consumed by batch_recommend."""
