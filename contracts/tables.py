"""Every table and record of Cartwheel: its columns, key, partitions and rules. Spark and GX schemas derive from here.

Data goes one way: bronze_events -> silver_events -> item_intervals, item_features, user_histories, training_lists
-> model; exposures + silver_events -> attributions; model + user_histories -> recommendations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contracts.settings import settings


@dataclass(frozen=True)
class Column:
    """One column. `type` is Spark SQL's name of it. Bounds are inclusive and of values that are not null."""

    name: str
    type: str
    description: str = ""
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Table:
    """One Delta table. `key` is unique; `partition_by` is what a run replaces as a whole."""

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    partition_by: tuple[str, ...] = ()
    may_be_empty: bool = field(default=False)

    @property
    def uri(self) -> str:
        """Where it lies: a path, or an address in an object store."""
        return f"{settings().lake_uri}/{self.name}"

    @property
    def ddl(self) -> str:
        """Spark SQL's schema."""
        return ", ".join(f"{c.name} {c.type}{'' if c.nullable else ' NOT NULL'}" for c in self.columns)

    @property
    def column_names(self) -> list[str]:
        return [c.name for c in self.columns]


MAX_PROBLEM_SHARE = 0.2
"""Share of records with problems that the gate of raw events lets pass."""
UNTIMED = -2_000_000_000
"""Stands for the interval of records whose time cannot be read."""
_INTERVAL = Column(
    "interval", "int", "number of the interval that holds occurred_at", minimum=-1_000_000_000, maximum=2_000_000_000
)
_AS_OF = Column("as_of", "int", "computed from the intervals before this one only")
NUM_USER_BUCKETS = 16
"""All that is made of one user lies in one bucket, so that buckets are read, and trained on, one by one or side by side."""
_BUCKET = Column("bucket", "int", "of the user, by a hash of user_id", minimum=0, maximum=NUM_USER_BUCKETS - 1)

BRONZE_EVENTS = Table(
    "bronze_events",
    "Every record that was read, columns named and typed by the contract. A value that could not be read is null, "
    "`problems` says so and `record` has all as it came.",
    (
        Column("event_id", "string", "the source's id, else a hash of the record; always that of one that is unfit"),
        Column("source", "string", "name of the source"),
        Column("interval", "int", "number of the interval that holds occurred_at; UNTIMED: the time cannot be read"),
        Column("user_id", "string", "a pseudonym where the dataset file says that ids are personal", nullable=True),
        Column("item_id", "string", nullable=True),
        Column("event_type", "string", nullable=True),
        Column("occurred_at", "timestamp", "UTC", nullable=True),
        Column(
            "at",
            "double",
            "wall-clock time in intervals: n-1 is the start of interval n",
            nullable=True,
            minimum=-1_000_000_001,
            maximum=2_000_000_000,
        ),
        Column("session_id", "string", "basket or visit", nullable=True),
        Column("quantity", "double", nullable=True),
        Column("price", "double", "for one unit, in the shop's currency", nullable=True),
        Column("problems", "array<string>", "what could not be read or is declared to be no event"),
        Column("extra", "map<string,string>", "every other column of the source"),
        Column("record", "string", "as it came, as JSON, where it is unfit for silver", nullable=True),
        Column("ingested_at", "timestamp", "UTC"),
    ),
    key=("interval", "event_id"),
    partition_by=("interval",),
)

QUARANTINE = Table(
    "quarantine",
    "What of bronze_events is unfit for silver_events, each with its reasons; nothing is dropped in silence.",
    (
        Column("interval", "int", "UNTIMED: the time cannot be read"),
        Column("source", "string", "name of the source"),
        Column("event_id", "string"),
        Column("reasons", "array<string>"),
        Column("row", "string", "the record as JSON"),
    ),
    key=(),
    partition_by=("interval",),
    may_be_empty=True,
)

LEDGER = Table(
    "ledger",
    "What became of every record: read = landed + quarantined + duplicates, for each batch of a source and interval.",
    (
        Column("source", "string", "name of the source"),
        Column("batch", "int", "number of the batch, counted for each source from 1"),
        Column("interval", "int", "UNTIMED: the time cannot be read"),
        Column("read", "bigint", "records read from the source", minimum=0),
        Column("landed", "bigint", "of these, now in an interval of bronze_events", minimum=0),
        Column("quarantined", "bigint", "of these, now in bronze_events without a time", minimum=0),
        Column("duplicates", "bigint", "of these, landed already", minimum=0),
        Column("bronze_version", "bigint", "of the commit of bronze_events that landed the batch"),
        Column("committed_at", "timestamp", "UTC"),
    ),
    key=("source", "batch", "interval"),
    may_be_empty=True,
)

POSITIONS = Table(
    "positions",
    "How far each source has been read. Each position was part of the commit that landed its batch.",
    (
        Column("source", "string", "name of the source"),
        Column("part", "string", "what of the source: a file, a topic, or as its reader calls it"),
        Column("position", "string", "JSON, as the reader understands it"),
        Column("batch", "int", "the last one that moved it"),
    ),
    key=("source", "part"),
    may_be_empty=True,
)

ERASED = Table(
    "erased",
    "Users who were erased and must not come back when a source is read again.",
    (
        Column("user_id_hash", "string", "pseudonym of the stored user id: the id itself is not kept"),
        Column("erased_at", "timestamp", "UTC; when it was asked for"),
    ),
    key=("user_id_hash",),
    may_be_empty=True,
)

ITEMS = Table(
    "items",
    "What is known of each item.",
    (
        Column("item_id", "string"),
        Column("name", "string"),
        Column("category", "string", "coarse grouping", nullable=True),
        Column("type", "string", "fine grouping", nullable=True),
        Column("recommendable", "boolean", "false where the dataset file excludes it"),
        Column("seen", "boolean", "whether an event names it", nullable=True),
    ),
    key=("item_id",),
)

USERS = Table(
    "users",
    "What is known of each user, for people who read reports.",
    (Column("user_id", "string"), Column("description", "string")),
    key=("user_id",),
    may_be_empty=True,
)

PROMOTIONS = Table(
    "promotions",
    "Plan of promotions: share of places at which an item is promoted in an interval.",
    (
        Column("item_id", "string"),
        Column("interval", "int"),
        Column("first_share", "double", "by the first channel", minimum=0, maximum=1),
        Column("second_share", "double", "by the second channel, 0 without one", minimum=0, maximum=1),
        Column("any_share", "double", "by either", minimum=0, maximum=1),
    ),
    key=("item_id", "interval"),
    may_be_empty=True,
)

SILVER_EVENTS = Table(
    "silver_events",
    "Clean events: complete, in range, once each.",
    (
        Column("event_id", "string"),
        _INTERVAL,
        Column("user_id", "string"),
        Column("item_id", "string"),
        Column("event_type", "string"),
        Column("weight", "double", "of the event type", minimum=0),
        Column("target", "boolean", "of a type that recommendations should lead to"),
        Column("occurred_at", "timestamp", "UTC"),
        Column("at", "double", "wall-clock time in intervals"),
        Column("session_id", "string", "the source's, else user and time"),
        Column("quantity", "double", minimum=0, maximum=1_000_000),
        Column("price", "double", "for one unit", nullable=True, minimum=0, maximum=10_000_000),
        Column("bronze_ingested_at", "timestamp", "UTC"),
    ),
    key=("event_id",),
    partition_by=("interval",),
)

ITEM_INTERVALS = Table(
    "item_intervals",
    "Sums of one item in one interval: what item_features adds up.",
    (
        Column("interval", "int"),
        Column("item_id", "string"),
        Column("events", "double", "baskets that hold the item", minimum=0),
        Column("target_events", "double", "of these, of a target type", minimum=0),
        Column("first_events", "double", "of these, a user's first of this item, back to the horizon", minimum=0),
        Column("gaps", "double", "of these, a user's repeat", minimum=0),
        Column("gap_intervals", "double", "summed time since the user's previous one, in intervals", minimum=0),
        Column("quantity", "double", minimum=0),
        Column("spend", "double", "quantity times price, where there is one", minimum=0),
        Column("priced_quantity", "double", minimum=0),
    ),
    key=("interval", "item_id"),
    partition_by=("interval",),
)

ITEM_FEATURES = Table(
    "item_features",
    "Statistics of each item as of an interval's start, from the intervals before it back to the horizon.",
    (
        _AS_OF,
        Column("item_id", "string"),
        Column("events_1", "double", "in the last interval", minimum=0),
        Column("events_4", "double", "in the last 4", minimum=0),
        Column("events_13", "double", "in the last 13", minimum=0),
        Column("events_all", "double", "in all", minimum=1),
        Column("target_events_4", "double", minimum=0),
        Column("buyers_all", "double", "of these, a user's first", minimum=0),
        Column("first_share_4", "double", "share of first events in the last 4", minimum=0, maximum=1),
        Column("repeat_share", "double", "share of repeats in all", minimum=0, maximum=1),
        Column("mean_gap", "double", "mean time between a user's events, in intervals; 0 when unknown", minimum=0),
        Column("mean_price", "double", "of all; 0 when unknown", minimum=0),
        Column("price_ratio", "double", "of the last 4 to all; 1 when unknown", minimum=0),
        Column("promotion_first", "double", "planned for interval as_of", minimum=0, maximum=1),
        Column("promotion_second", "double", minimum=0, maximum=1),
        Column("promotion_any", "double", minimum=0, maximum=1),
    ),
    key=("as_of", "item_id"),
    partition_by=("as_of",),
)

USER_HISTORIES = Table(
    "user_histories",
    "One row for each user of an interval: what the user took in it in order of time, one entry for each item of each "
    "basket. The history as of interval n is that of the intervals before n, back to the horizon.",
    (
        Column("interval", "int"),
        Column("user_id", "string"),
        Column("item_ids", "array<string>"),
        Column("at", "array<double>", "time of the basket in intervals, ascending"),
        Column("weights", "array<double>", "heaviest event type of the entry"),
        _BUCKET,
    ),
    key=("interval", "user_id"),
    partition_by=("interval",),
)

TRAINING_LISTS = Table(
    "training_lists",
    "The labels: what each user active in interval as_of took in it.",
    (_AS_OF, Column("user_id", "string"), Column("target_items", "array<string>", "distinct, not empty"), _BUCKET),
    key=("as_of", "user_id"),
    partition_by=("as_of",),
)

EXPOSURES = Table(
    "exposures",
    "What was shown to whom: one row for each list of recommendations that the gateway has answered with.",
    (
        Column("interval", "int", "interval the shopper was in"),
        Column("request_id", "string", "the answer's x-request-id; with its place, where it was for several users"),
        Column("served_at", "timestamp", "when it was asked for; of a replayed request, the time it stands for"),
        Column("user_id", "string", "as the model knows it; null: a request that brought a history", nullable=True),
        Column("client", "string", "who asked, by its token", nullable=True),
        Column("arm", "string", "stable or canary as the gateway chose; pinned where the request named a version"),
        Column("model_version", "int", "null: no model answered, and what is popular was shown", nullable=True),
        Column(
            "step", "int", "of the rollout, by the number of its change: the shares it was chosen by", nullable=True
        ),
        Column("items", "array<string>", "as shown, best first"),
        Column("scores", "array<double>"),
        Column("latency_ms", "double", "in the gateway, from the request's first byte to the answer's last", minimum=0),
    ),
    key=("request_id",),
    partition_by=("interval",),
    may_be_empty=True,
)

ATTRIBUTIONS = Table(
    "attributions",
    "What was recommended, by the model and by the baselines, beside what was then taken.",
    (
        Column("interval", "int"),
        Column("request_id", "string"),
        Column("user_id", "string"),
        Column("model_version", "int"),
        Column("latency_ms", "double", minimum=0),
        Column("items", "array<string>"),
        Column("popular_items", "array<string>", "the popularity baseline's list"),
        Column("frequent_items", "array<string>", "the personal frequency baseline's list"),
        Column("taken_items", "array<string>", "distinct; empty when the user took nothing"),
    ),
    key=("request_id",),
    partition_by=("interval",),
    may_be_empty=True,
)

CATEGORY_SHARES = Table(
    "category_shares",
    "Share of each category in an interval's events: what drift is measured on.",
    (
        Column("interval", "int"),
        Column("category", "string"),
        Column("share", "double", minimum=0, maximum=1),
    ),
    key=("interval", "category"),
    partition_by=("interval",),
)

RECOMMENDATIONS = Table(
    "recommendations",
    "What the champion recommends to each user, computed without being asked.",
    (
        Column("user_id", "string"),
        Column("items", "array<string>", "best first"),
        Column("scores", "array<double>"),
        Column("model_version", "int"),
        _BUCKET,
    ),
    key=("user_id",),
    partition_by=("bucket",),
    may_be_empty=True,
)

TABLES = (
    BRONZE_EVENTS,
    QUARANTINE,
    LEDGER,
    POSITIONS,
    ERASED,
    ITEMS,
    USERS,
    PROMOTIONS,
    SILVER_EVENTS,
    ITEM_INTERVALS,
    ITEM_FEATURES,
    USER_HISTORIES,
    TRAINING_LISTS,
    EXPOSURES,
    ATTRIBUTIONS,
    CATEGORY_SHARES,
    RECOMMENDATIONS,
)
