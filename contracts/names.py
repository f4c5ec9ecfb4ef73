"""Names that more than one part of Cartwheel, or the world outside, relies on."""

from __future__ import annotations

EXPERIMENT = "cartwheel"
"""The MLflow experiment."""

CHAMPION = "champion"
CHALLENGER = "challenger"
ITEMS_VERSION = "items_version"
"""Tag of a version in MLflow: the Delta version of the table `items` that says what it may recommend."""

INGEST_EVENTS = "ingest_events"
BUILD_FEATURES = "build_features"
TRAIN_RECOMMENDER = "train_recommender"
REFRESH_RECOMMENDER = "refresh_recommender"
DEPLOY_RECOMMENDER = "deploy_recommender"
MONITOR_RECOMMENDER = "monitor_recommender"
DAGS = (
    INGEST_EVENTS,
    BUILD_FEATURES,
    TRAIN_RECOMMENDER,
    REFRESH_RECOMMENDER,
    DEPLOY_RECOMMENDER,
    MONITOR_RECOMMENDER,
)
"""The loop, in its order."""
ROLLBACK_RECOMMENDER = "rollback_recommender"
BATCH_RECOMMEND = "batch_recommend"
SEARCH_CONFIGURATION = "search_configuration"
ON_DEMAND = (ROLLBACK_RECOMMENDER, BATCH_RECOMMEND, SEARCH_CONFIGURATION)
"""What a person triggers or turns on; not part of the loop."""

NOTHING_TO_DO = 99
"""Exit status of a command that found nothing to do; Airflow shows the task as skipped."""
