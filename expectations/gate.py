"""A gate: check what is new in its tables, and write down whether it may go on.

The verdict in `reports_dir/gates/GATE.json` names the Delta version of every table it covers: a model may be
trained on these versions only. A rule that could not be answered fails the gate.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contracts import tables
from contracts.errors import InputError
from contracts.files import locked, write_json
from contracts.gates import verdict_path
from contracts.lake import exists
from contracts.settings import settings
from contracts.tables import Table


@dataclass(frozen=True)
class Gate:
    """The tables a gate covers, and those it only compares them with. One that may be empty may also be absent."""

    covers: tuple[Table, ...]
    reads: tuple[Table, ...] = ()


GATES: Mapping[str, Gate] = {
    "raw": Gate((tables.BRONZE_EVENTS, tables.LEDGER)),
    "clean": Gate((tables.SILVER_EVENTS, tables.ITEMS), (tables.BRONZE_EVENTS,)),
    "features": Gate(
        (tables.ITEM_INTERVALS, tables.ITEM_FEATURES, tables.USER_HISTORIES, tables.CATEGORY_SHARES),
        (tables.SILVER_EVENTS, tables.ITEMS),
    ),
    "lists": Gate((tables.TRAINING_LISTS,), (tables.SILVER_EVENTS, tables.ITEMS, tables.USER_HISTORIES)),
}
CLOCK = "clock"
"""Stands beside the tables that a gate compares with, for the last interval that is over."""


@dataclass(frozen=True)
class Failure:
    """One rule that did not hold, in words."""

    table: str
    column: str
    rule: str
    observed: str

    @property
    def line(self) -> str:
        return f"{self.table}{'.' + self.column if self.column else ''}: {self.observed} ({self.rule})"


@dataclass(frozen=True)
class Verdict:
    gate: str
    passed: bool
    table_versions: dict[str, int]
    """Delta version of every table the gate covers."""
    references: dict[str, str]
    """What the tables held that it compared them with: a digest of the complete partitions; `clock`: the last interval
    that was over."""
    failures: tuple[Failure, ...]
    num_rules: int
    checked_rows: dict[str, int]
    passed_partitions: dict[str, dict[str, str]]
    """Fingerprint of every partition that has passed; these are not checked again."""
    rules: str
    """Fingerprint of the rules; when they change, everything is checked again."""
    data_docs: str
    seconds: float
    line: str


def check(name: str, *, full: bool = False) -> Verdict:
    """Check a gate's tables and write its verdict.

    Raises:
        InputError: there is no such gate, or one of its tables does not exist.
    """
    from expectations.facts import last_interval_of_the_clock
    from expectations.snapshot import open_snapshot

    if name not in GATES:
        raise InputError(f"no gate {name!r}", where="GATE", cure=f"name one of {', '.join(GATES)}")
    gate = GATES[name]
    # Gates share a context and the Data Docs.
    with locked(settings().home_dir / "great_expectations.lock"):
        started = time.monotonic()
        covers = tuple(table for table in gate.covers if not table.may_be_empty or exists(table))
        around = {table.name: open_snapshot(table) for table in (*covers, *gate.reads)}
        versions = {table.name: around[table.name].version for table in covers}
        references = {table.name: around[table.name].digest for table in gate.reads}
        if tables.BRONZE_EVENTS in covers and (over := last_interval_of_the_clock()) is not None:
            references[CLOCK] = str(over)
        rules = _rules_fingerprint(gate)
        before = read_verdict(name)
        passed_before = before.passed_partitions if before and before.rules == rules and not full else {}
        if (
            before
            and before.passed
            and passed_before
            and (before.table_versions, before.references) == (versions, references)
        ):
            return before

        failures, num_rules, checked_rows, data_docs = _judge(covers, around, passed_before)
        seconds = round(time.monotonic() - started, 1)
        rows = ", ".join(f"{count:,} of {table}" for table, count in checked_rows.items())
        verdict = Verdict(
            gate=name,
            passed=not failures,
            table_versions=versions,
            references=references,
            failures=failures,
            num_rules=num_rules,
            checked_rows=checked_rows,
            passed_partitions=passed_before if failures else {table: around[table].partitions for table in versions},
            rules=rules,
            data_docs=str(data_docs),
            seconds=seconds,
            line=f"gate {name} {'FAILED' if failures else 'passed'}: {len(failures)} of {num_rules} rules broken; "
            f"new rows checked: {rows}; {seconds} s",
        )
        write_json(verdict_path(name), asdict(verdict))
        return verdict


def read_verdict(name: str) -> Verdict | None:
    """The last verdict of a gate; None when there is none that can be read."""
    try:
        content = json.loads(verdict_path(name).read_text(encoding="utf-8"))
        return Verdict(**{**content, "failures": tuple(Failure(**failure) for failure in content["failures"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def failures_of(table: str, num_rules: int, results: Sequence[Any]) -> list[Failure]:
    """What of a validation did not hold, and what was not answered.

    Great Expectations can report success with rules left unanswered (its issue 8548), so results are counted and
    an exception in place of an answer is a failure.
    """
    failures = [_failure(table, result) for result in results if not result.success or _exception(result)]
    if len(results) != num_rules:
        observed = f"{num_rules - len(results)} of {num_rules} rules were not answered"
        failures.append(Failure(table, "", "every rule must be answered", observed))
    return failures


def _judge(
    covers: Sequence[Table], around: Mapping[str, Any], passed_before: Mapping[str, Mapping[str, str]]
) -> tuple[tuple[Failure, ...], int, dict[str, int], Path]:
    from expectations import data_docs, validation

    context = validation.open_context()

    from expectations import facts, suites

    failures: list[Failure] = []
    checked_rows: dict[str, int] = {}
    num_rules = 0
    validated: list[str] = []
    for table in covers:
        snapshot = around[table.name]
        passed = passed_before.get(table.name, {})
        changed = [label for label, print_ in snapshot.partitions.items() if passed.get(label) != print_]
        rows = snapshot.read(suites.read_columns(table), changed)
        checked_rows[table.name] = rows.num_rows
        measured = facts.measure(snapshot, rows, changed, around)
        frame = suites.row_frame(rows, table)
        del rows
        for suite, data in (
            (suites.suite(table.name, suites.row_expectations(table)), frame),
            (
                suites.suite(f"{table.name}_facts", suites.fact_expectations(measured)),
                suites.fact_frame(snapshot, measured),
            ),
        ):
            num_rules += len(suite.expectations)
            validated.append(suite.name)
            failures += failures_of(
                table.name, len(suite.expectations), validation.validate(context, suite, data).results
            )
    return tuple(failures), num_rules, checked_rows, data_docs.build(context, validated)


def _exception(result: Any) -> str:
    """The message of the exception that stands in place of an answer; empty when there is none."""
    info = result.exception_info or {}
    nested = [info] if "raised_exception" in info else list(info.values())
    for each in nested:
        if each.get("raised_exception"):
            return str(each.get("exception_message") or "unknown error").strip().splitlines()[0][:200]
    return ""


def _failure(table: str, result: Any) -> Failure:
    """A failed result of Great Expectations, in words."""
    config = result.expectation_config
    kwargs, outcome = config.kwargs, result.result or {}
    column = kwargs.get("column") or "+".join(kwargs.get("column_list", []))
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    allowed = f"{'any' if low is None else f'{low:g}'} to {'any' if high is None else f'{high:g}'}"
    if message := _exception(result):
        return Failure(table, column, config.type, f"could not be answered: {message}")
    examples = outcome.get("partial_unexpected_list") or []
    if words := (config.meta or {}).get("words"):
        value = examples[0] if examples else outcome.get("observed_value")
        return Failure(table, column, f"allowed: {allowed}", f"{value:,.4g} {words}")
    if config.type == "expect_column_values_to_be_in_set":
        return Failure(table, "", "columns as the contract says", str(examples[0] if examples else "?"))
    count, total = outcome.get("unexpected_count", 0), outcome.get("element_count", 0)
    sample = ""
    if examples and not config.type.endswith("not_be_null"):
        sample = "; e.g. " + ", ".join(str(example) for example in examples)
    rule = {
        "expect_column_values_to_not_be_null": "must not be null",
        "expect_column_values_to_be_between": f"allowed: {allowed}",
        "expect_column_values_to_be_unique": "must be unique",
        "expect_compound_columns_to_be_unique": "must be unique together",
    }.get(config.type, config.type)
    return Failure(table, column, rule, f"{count:,} of {total:,} rows break the rule{sample}")


def _rules_fingerprint(gate: Gate) -> str:
    here = Path(__file__).parent
    text = repr((gate.covers, gate.reads)) + "".join((here / f"{part}.py").read_text() for part in ("facts", "suites"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
