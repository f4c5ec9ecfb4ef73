"""The dataset file: one TOML file that says where a shop's events, items and users are and what they mean.

`docs/bring-your-own-data.md` explains it to a reader; `load` turns it into checked objects. Nothing here
reads the data itself.
"""

from __future__ import annotations

import glob
import importlib.util
import math
import re
import tomllib
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from contracts.errors import InputError

_SHORT_UNITS = {"s": timedelta(seconds=1), "min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_UNITS = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+) ?(min|h|d|w)", value.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError("write a length as a number and one of min, h, d, w: 7d")
    return int(match[1]) * _UNITS[match[2]]


def look_back(value: Any) -> timedelta | Decimal:
    """How far to look back: a length of time for times, a number for numbers; for pydantic's validators.

    Raises:
        ValueError: it is neither.
    """
    written = re.fullmatch(r"(\d+) ?(s|min|h|d)", value.strip()) if isinstance(value, str) else None
    if written is not None:
        return int(written[1]) * _SHORT_UNITS[written[2]]
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number < 0:
        raise ValueError("write a length of time as a number and one of s, min, h, d (10min), or a number")
    return number


def _many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Many = Annotated[tuple[str, ...], BeforeValidator(_many)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


HORIZON_DAYS = 420.0
"""What a user took, and what an item sold, longer ago than this counts for nothing any more: so a step costs the same,
however old the shop is. Sixty weeks: one year, and the season of the year before."""


def horizon(interval_days: float) -> int:
    """HORIZON_DAYS in intervals of this length."""
    return math.ceil(HORIZON_DAYS / interval_days)


class Interval(_Part):
    """The grid of time: everything is landed, learnt and measured per interval.

    Intervals are numbered from 1; number 1 starts at `first`, in the shop's wall-clock time.
    """

    length: Annotated[timedelta, BeforeValidator(_duration)] = timedelta(days=7)
    first: datetime = datetime(2001, 1, 1)  # a Monday
    volume_factor: float = Field(5.0, gt=1)
    """How many times more or fewer events than usual the newest interval may have before a gate stops it."""
    lateness_limit: Annotated[timedelta, BeforeValidator(_duration), Field(validate_default=True)] = "365d"  # type: ignore[assignment]
    """An event that is older by this than the newest that has landed is set aside, but for the first batch of a source."""

    @field_validator("first")
    @classmethod
    def _wall_clock(cls, value: datetime) -> datetime:
        if value.tzinfo is not None:
            raise ValueError("is wall-clock time of the shop: leave the offset out, set time_zone instead")
        return value

    def start(self, number: int) -> datetime:
        """Wall-clock time at which interval `number` starts."""
        return self.first + (number - 1) * self.length

    def number(self, wall_clock: datetime) -> int:
        """The interval that holds a wall-clock time."""
        return (wall_clock - self.first) // self.length + 1

    def label(self, number: int) -> str:
        """What a person reads: `53 (from 2017-12-25)`."""
        start = self.start(number)
        return (
            f"{number} (from {start:%Y-%m-%d})" if start.time() == datetime.min.time() else f"{number} (from {start})"
        )

    @property
    def days(self) -> float:
        return self.length / timedelta(days=1)

    @property
    def horizon(self) -> int:
        """HORIZON_DAYS in intervals."""
        return horizon(self.days)


class Files(_Part):
    """One file, a glob, a folder, or a list of them; `package:NAME/path` means a file of an installed package."""

    path: Many = Field(min_length=1)
    format: Literal["csv", "jsonl", "parquet"] | None = None
    separator: str = ","
    encoding: str = "UTF-8"

    @model_validator(mode="after")
    def _format_is_known(self) -> Files:
        if self.format is None:
            self.file_format  # noqa: B018 - raises for an unknown ending
        return self

    @property
    def file_format(self) -> str:
        """`csv`, `jsonl` or `parquet`: as declared, else by the name of the first path."""
        if self.format is not None:
            return self.format
        name = re.sub(r"\.(gz|bz2|zst|snappy|lz4)$", "", self.path[0].lower())
        for ending, format_name in {
            ".csv": "csv",
            ".tsv": "csv",
            ".jsonl": "jsonl",
            ".ndjson": "jsonl",
            ".parquet": "parquet",
        }.items():
            if name.endswith(ending):
                return format_name
        raise ValueError(f"cannot tell the format of {self.path[0]!r}: set format to csv, jsonl or parquet")


class _PerhapsFiles(_Part):
    """Something that may lie in files of its own: the keys of `Files`, `path` not needed."""

    path: Annotated[tuple[str, ...] | None, BeforeValidator(_many)] = None
    format: Literal["csv", "jsonl", "parquet"] | None = None
    separator: str = ","
    encoding: str = "UTF-8"

    @property
    def files(self) -> Files | None:
        if self.path is None:
            return None
        return Files(path=self.path, format=self.format, separator=self.separator, encoding=self.encoding)

    @model_validator(mode="after")
    def _files_are_sound(self) -> Self:
        self.files  # noqa: B018 - raises for an unknown ending
        return self


class EventColumns(_Part):
    """Which column of the events means what. Only user, item and time are needed."""

    user_id: str
    item_id: str
    occurred_at: str
    event_id: str | None = None
    event_type: str | None = None
    session_id: str | None = None
    quantity: str | None = None
    price: str | None = None


class Exclusion(_Part):
    """Rows that are no event, told by a column of the file: cancelled orders, test accounts, postage."""

    reason: str
    column: str
    starts_with: str | None = None
    one_of: Many | None = None
    matches: str | None = None

    @model_validator(mode="after")
    def _one_test(self) -> Exclusion:
        if sum(test is not None for test in (self.starts_with, self.one_of, self.matches)) != 1:
            raise ValueError("give exactly one of starts_with, one_of, matches")
        if self.matches is not None:
            re.compile(self.matches)
        return self


class Events(_PerhapsFiles):
    """One source of events: files, or what the one table says that is named like a module of `spark_jobs.sources`."""

    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    """Empty: the name of the dataset, when it has one source only."""
    kind: str = "files"
    options: dict[str, Any] = Field(default_factory=dict)
    """Content of `[events.KIND]`, checked by `spark_jobs.sources.KIND`."""
    settle_s: float = Field(2.0, ge=0)
    """Files changed less than this many seconds ago may still be written: they are waited for."""
    columns: EventColumns
    event_ids_are: Literal["of the source", "of the shop"] = "of the source"
    """Whether the same event_id (or, without ids, the same row) from another source means the same event."""
    time_format: str | None = None
    """Spark's pattern, e.g. `yyyy-MM-dd HH:mm:ss`; also `epoch_s`, `epoch_ms`, `epoch_us`. None: ISO 8601 or a real time column."""
    time_is: Literal["utc", "local"] = "utc"
    price_is: Literal["line", "unit"] = "unit"
    decimal_comma: bool = False
    types: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: {"purchase": 1.0}, min_length=1)
    """Weight of each event type. Rows of another type are set aside."""
    type_names: dict[str, str] = Field(default_factory=dict)
    """Other names of the types in the file: `{"order_placed" = "purchase"}`."""
    default_type: str | None = None
    """The type of every row when no column tells it."""
    targets: tuple[str, ...] | None = None
    """The types a recommendation should lead to. None: all."""
    exclude: tuple[Exclusion, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _kind_is_its_table(cls, data: Any) -> Any:
        """Put `{kafka: {...}}` as `kind` and `options`."""
        if not isinstance(data, dict):
            return data
        tables = [key for key, value in data.items() if key not in cls.model_fields and isinstance(value, dict)]
        if len(tables) != 1 or "kind" in data:
            return data
        return {key: value for key, value in data.items() if key != tables[0]} | {
            "kind": tables[0], "options": data[tables[0]],
        }  # fmt: skip

    @model_validator(mode="after")
    def _reads_from_one_place(self) -> Events:
        if (self.kind == "files") != (self.path is not None):
            raise ValueError("give either path or one table that says where events come from, such as [events.kafka]")
        return self

    @model_validator(mode="after")
    def _types_agree(self) -> Events:
        declared = set(self.types)
        for field, used in (("targets", set(self.targets or ())), ("type_names", set(self.type_names.values()))):
            if used - declared:
                raise ValueError(f"{field} names {sorted(used - declared)}, which is not in types {sorted(declared)}")
        if self.columns.event_type is None and self.default_type is None and len(declared) > 1:
            raise ValueError("columns.event_type is not given: set default_type to one of types")
        if self.default_type is not None and self.default_type not in declared:
            raise ValueError(f"default_type {self.default_type!r} is not in types {sorted(declared)}")
        return self

    @property
    def only_type(self) -> str | None:
        """The type of rows that do not tell theirs."""
        return self.default_type or (next(iter(self.types)) if len(self.types) == 1 else None)

    @property
    def target_types(self) -> tuple[str, ...]:
        return self.targets or tuple(self.types)


class ItemColumns(_Part):
    """Columns of the items. `name` may join several; `category` is the coarse and `type` the fine grouping."""

    item_id: str
    name: Many = ()
    category: str | None = None
    type: str | None = None


class Items(_PerhapsFiles):
    """What is known of the items: from a file of its own, or (without `path`) from columns of the events."""

    columns: ItemColumns
    not_recommended: tuple[str, ...] = ()
    """Item ids, categories and types that are never recommended."""


class UserColumns(_Part):
    user_id: str
    description: Many = ()


class Users(Files):
    """What is known of the users, for people who read the reports. The model does not use it."""

    columns: UserColumns


class PromotionColumns(_Part):
    item_id: str
    interval: str
    """The number of the interval, counted as `interval.first` says."""
    channels: Many = Field(min_length=1, max_length=2)
    """Columns that tell how an item was promoted there."""
    place: str | None = None
    """Column of the store or page; a channel's strength is the share of places that use it."""


class Promotions(Files):
    """The plan of promotions, known before its interval starts."""

    columns: PromotionColumns
    not_promoted: tuple[str, ...] = ("0", "")
    """Values of a channel that mean none."""


class Dataset(_Part):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str = ""
    attribution: str = ""
    time_zone: str = "UTC"
    interval: Interval = Interval()
    events: Annotated[tuple[Events, ...], BeforeValidator(_one_or_many)] = Field(min_length=1)
    personal_user_id: bool = False
    """Whether user ids are personal (an e-mail, a phone number): then only their pseudonyms are kept."""
    items: Items | None = None
    users: Users | None = None
    promotions: Promotions | None = None
    minimum_item_events: int = Field(5, ge=1)
    """Items with fewer events than this are too little known to be recommended."""

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone: write it as Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _sources_fit_together(self) -> Dataset:
        if len(self.events) > 1 and not all(source.name for source in self.events):
            raise ValueError("events: with several sources each needs a name")
        names = [source.name for source in self.events]
        weights: dict[str, float] = {}
        for source in self.events:
            if names.count(source.name) > 1:
                raise ValueError(f"events: two sources are named {source.name!r}")
            for event_type, weight in source.types.items():
                if weights.setdefault(event_type, weight) != weight:
                    raise ValueError(f"events: type {event_type!r} has two weights, {weights[event_type]} and {weight}")
        return self

    def source_name(self, source: Events) -> str:
        return source.name or self.name

    @property
    def types(self) -> dict[str, float]:
        """Weight of each event type, of all sources together."""
        return {event_type: weight for source in self.events for event_type, weight in source.types.items()}

    @property
    def target_types(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(event_type for source in self.events for event_type in source.target_types))

    def moment(self, wall_clock: datetime) -> datetime:
        """The moment, in UTC, of a wall-clock time of the shop."""
        return wall_clock.replace(tzinfo=ZoneInfo(self.time_zone)).astimezone(UTC)

    def wall_clock(self, moment: datetime) -> datetime:
        """The shop's wall-clock time of a moment (naive moments are UTC)."""
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return aware.astimezone(ZoneInfo(self.time_zone)).replace(tzinfo=None)


def load(path: Path) -> Dataset:
    """Read and check a dataset file.

    Raises:
        InputError: the file is missing, is not TOML, or says something that does not fit.
    """
    cure = "see docs/bring-your-own-data.md"
    try:
        return Dataset.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            f"no dataset file: {error.strerror}", where=str(path), cure="name one with DATASET=path/to/shop.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not valid TOML: {error}", where=str(path), cure=cure) from None
    except ValidationError as error:
        first = error.errors()[0]
        # The one source of most shops stands in `[events]`, not in a list.
        only = isinstance(tomllib.loads(path.read_text(encoding="utf-8")).get("events"), dict)
        steps = [part for i, part in enumerate(first["loc"]) if not (only and i == 1 and first["loc"][0] == "events")]
        place = ".".join(str(part) for part in steps) or "the file"
        raise InputError(f"{place}: {first['msg'].removeprefix('Value error, ')}", where=str(path), cure=cure) from None


def resolve(path: str, folder: Path) -> str:
    """The real place of a dataset file's path: relative ones start at `folder`, `package:` ones in a package.

    Raises:
        InputError: the package is not installed, or nothing is there.
    """
    if path.startswith("package:"):
        package, _, inside = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"package {package!r} is not installed", where=path, cure="install it, or name a file instead"
            )
        resolved_path = Path(spec.submodule_search_locations[0]) / inside
    elif "://" in path:
        return path
    else:
        # Files are told apart by their paths: `..` and links are taken out of it, up to the first pattern. A file may
        # be named like a pattern, and so may the folder that it is in.
        *start, name = (folder / path).parts
        resolved_path = Path(*start).resolve() / name
        if not resolved_path.exists():
            parts = Path(path).parts
            fixed = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
            literal = folder.joinpath(*parts[:fixed]).resolve()
            resolved_path = Path(glob.escape(str(literal))).joinpath(*parts[fixed:])
    if not (resolved_path.exists() or glob.glob(str(resolved_path))):
        raise InputError("no such file", where=str(resolved_path), cure="correct `path` in the dataset file")
    return str(resolved_path)
