"""The guide to one's own data: every example is valid, every key is documented as it is."""

from __future__ import annotations

import csv
import importlib
import io
import re
import tomllib
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from contracts import dataset as datasets
from contracts.settings import REPOSITORY
from spark_jobs import sources

GUIDE = (REPOSITORY / "docs" / "bring-your-own-data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
TABLES = re.findall(r"```csv\n(.*?)```", GUIDE, re.DOTALL)
MODELS: dict[str, type[BaseModel]] = {
    "At the top": datasets.Dataset,
    "`[interval]`": datasets.Interval,
    "Files": datasets.Files,
    "`[events]`": datasets.Events,
    "`[events.columns]`": datasets.EventColumns,
    "`[[events.exclude]]`": datasets.Exclusion,
    "`[items]`": datasets.Items,
    "`[items.columns]`": datasets.ItemColumns,
    "`[users]`": datasets.Users,
    "`[users.columns]`": datasets.UserColumns,
    "`[promotions]`": datasets.Promotions,
    "`[promotions.columns]`": datasets.PromotionColumns,
}


def loaded(tmp_path, text: str) -> datasets.Dataset:
    (tmp_path / "shop.toml").write_text(text, encoding="utf-8")
    return datasets.load(tmp_path / "shop.toml")


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: tomllib.loads(text)["name"])
def test_every_example_is_a_whole_dataset_file(tmp_path, text: str) -> None:
    """What a reader copies is accepted as it stands."""
    loaded(tmp_path, text)


@pytest.mark.parametrize(
    ("rows", "text"), list(zip(TABLES, EXAMPLES, strict=False)), ids=["smallest", "orders", "clicks"]
)
def test_the_example_rows_have_the_columns_that_the_example_file_names(tmp_path, rows: str, text: str) -> None:
    """Each dataset file that follows some rows of CSV names columns of theirs."""
    shop = loaded(tmp_path, text)
    header = next(csv.reader(io.StringIO(rows)))
    [source] = shop.events
    named = {name for name in source.columns.model_dump().values() if name}
    named |= {exclusion.column for exclusion in source.exclude}
    if shop.items:
        columns = shop.items.columns
        named |= {columns.item_id, *columns.name, *filter(None, (columns.category, columns.type))}
    assert named <= set(header)
    assert all(len(row) == len(header) for row in csv.reader(io.StringIO(rows)))


def documented(heading: str, text: str = GUIDE.split("## Every key")[1]) -> dict[str, str]:
    """Key and default in the table below a heading of the reference."""
    chapter = re.split(r"^##+ ", text.split(f"### {heading}\n")[1], flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", chapter, re.MULTILINE))


def as_written(model: type[BaseModel], name: str) -> str:
    """A field's default as the reference shows it."""
    field = model.model_fields[name]
    if field.is_required():
        return "needed"
    value: Any = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
    assert value is not PydanticUndefined
    if value is None:
        return "none"
    if (model, name) == (datasets.Dataset, "interval"):
        return "see below"
    if (model, name) == (datasets.Interval, "length"):
        return f'`"{value.days}d"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{chr(34)}{part}{chr(34)}' for part in value)}]`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{key} = {part}' for key, part in value.items())}}}`"
    return f"`{value.isoformat() if hasattr(value, 'isoformat') else value}`"


@pytest.mark.parametrize(("heading", "model"), MODELS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_key_is_documented_with_its_default(heading: str, model: type[BaseModel]) -> None:
    """The reference has one row for each key of each part, with the default it has."""
    shared = set() if model is datasets.Files else set(datasets.Files.model_fields)
    own = [name for name in model.model_fields if name not in shared]
    assert documented(heading) == {name: as_written(model, name) for name in own}


def test_the_parts_that_read_files_share_the_keys_of_files() -> None:
    """The chapter on files holds for events, items, users and promotions alike."""
    for model in (datasets.Events, datasets.Items, datasets.Users, datasets.Promotions):
        for name in datasets.Files.model_fields:
            if (model, name) not in {(datasets.Items, "path"), (datasets.Events, "path")}:
                assert as_written(model, name) == as_written(datasets.Files, name)


def test_every_model_of_the_dataset_file_has_a_chapter() -> None:
    """A new part of the dataset file does not go undocumented."""
    parts = {
        value for value in vars(datasets).values() if isinstance(value, type) and issubclass(value, datasets._Part)
    }
    assert parts - {datasets._Part, datasets._PerhapsFiles} == set(MODELS.values())


def test_the_reasons_of_quarantine_are_those_of_the_code() -> None:
    """Each reason in the guide is written in the rules or the parser of the Spark jobs."""
    code = "".join((REPOSITORY / "spark_jobs" / name).read_text() for name in ("rules.py", "parsing.py"))
    texts = (
        "occurred_at: not a time",
        "occurred_at: in the future",
        "occurred_at: of a clock that was not set",
        "quantity: not a number",
        "price: not a number",
        "event_type: not known",
    )
    words = ("row: not in the shape of the other rows", "excluded: ", "missing", "returned")
    for reason in (*texts, *words):
        assert reason in code, reason
        assert reason in GUIDE, reason


@pytest.mark.parametrize("kind", [kind for kind in sources.kinds() if kind != "files"])
def test_every_option_of_every_source_is_documented(kind: str) -> None:
    """The chapter of a kind of source has one row for each of its keys, with its default."""
    model = importlib.import_module(f"spark_jobs.sources.{kind}").Options
    text = (REPOSITORY / "docs" / "sources.md").read_text(encoding="utf-8")
    assert documented(f"`[events.{kind}]`", text) == {name: as_written(model, name) for name in model.model_fields}
