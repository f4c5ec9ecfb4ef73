"""The law of imports, DAG files that stay thin, and names that mean something."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DAG_FILES = sorted((REPOSITORY / "dags").glob("*.py"))
OURS = (
    "contracts",
    "dags",
    "deploy",
    "expectations",
    "monitoring",
    "plugins",
    "serving",
    "spark_jobs",
    "tests",
    "training",
)
PYTHON_FILES = sorted(path for folder in OURS for path in (REPOSITORY / folder).rglob("*.py"))


def test_the_law_of_imports_holds() -> None:
    """import-linter finds no import that goes against the layers of pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_dag_files_import_only_airflow_contracts_and_our_operators(path: Path) -> None:
    """A DAG file reaches for no engine and no library of its own."""
    tree = ast.parse(path.read_text())
    modules = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert modules <= {"airflow", "cartwheel_airflow", "contracts"}


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_dag_files_hold_no_logic(path: Path) -> None:
    """No functions, loops, conditions or exceptions in a DAG file."""
    forbidden = (ast.FunctionDef, ast.For, ast.While, ast.If, ast.Try, ast.Lambda)
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, forbidden)]


MEANINGLESS = {
    "asked", "found", "given", "gone", "held", "kept", "known", "lost", "made", "said", "seen", "sent",
    "there", "told", "wanted",
}  # fmt: skip
"""What a thing happened to go through says nothing about what it is."""


def test_names_say_what_a_thing_is() -> None:
    """No function, argument or variable is called by a bare participle."""
    offenders = []
    for path in PYTHON_FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                    pass
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                    pass
                case _:
                    continue
            if name.strip("_") in MEANINGLESS:
                offenders.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}: {name}")
    assert offenders == []
