"""What the documents promise is there: links, targets, settings, tables, DAGs; and nothing of any one machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from contracts import __main__ as generator
from contracts.errors import InputError
from contracts.names import BATCH_RECOMMEND, DAGS, ON_DEMAND, SEARCH_CONFIGURATION
from contracts.settings import REPOSITORY, Settings
from contracts.tables import TABLES

DOCUMENTS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    """Every relative link and picture resolves, anchors included."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_make_targets_exist(path: Path) -> None:
    """Each `make TARGET` in code or in a command is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^|= *\S* )(?:CARTWHEEL_\w+=\S+ )?make ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named <= targets


def test_contributing_names_every_target_of_tests() -> None:
    """Whoever changes a line finds each way to test it, and no other, in the order of the Makefile."""
    makefile, text = ((REPOSITORY / name).read_text() for name in ("Makefile", "CONTRIBUTING.md"))
    targets = re.findall(r"^((?:setup|test|lint)[a-z-]*):.*## ", makefile, re.MULTILINE)
    assert re.findall(r"^\| `make ([a-z-]+)` \|", text, re.MULTILINE) == targets


def test_the_two_commands_stand_in_the_readme() -> None:
    """Running it and testing it are what a reader sees first."""
    commands = (REPOSITORY / "README.md").read_text().split("```sh")[1].split("```")[0]
    assert re.findall(r"^make .*?(?=  |$)", commands, re.MULTILINE) == ["make run", "make test"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_modules_named_in_commands_exist(path: Path) -> None:
    """`python -m X` in a document names a module of ours that can be run, or pytest."""
    for module in set(re.findall(r"python -m ([a-z_.]+)", path.read_text(encoding="utf-8"))):
        place = REPOSITORY / module.replace(".", "/")
        assert module == "pytest" or place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_settings_named_in_documents_exist(path: Path) -> None:
    """Each CARTWHEEL_ variable in a document is a setting."""
    variables = {generator.variable(name) for name in Settings.model_fields} | {
        "CARTWHEEL_SECRET_NAME",
        "CARTWHEEL_SECRET_SHOP_DB",
        "CARTWHEEL_TEST_REES46_DIR",
    }
    assert set(re.findall(r"CARTWHEEL_[A-Z0-9_]+[A-Z0-9]", path.read_text(encoding="utf-8"))) <= variables


def test_the_readme_table_of_settings_is_up_to_date() -> None:
    """`python -m contracts settings --write` would change nothing in the README."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert generator.with_table(text) == text


def test_the_env_example_is_up_to_date() -> None:
    """`python -m contracts settings --write` would change nothing in .env.example."""
    assert (REPOSITORY / ".env.example").read_text(encoding="utf-8") == generator.env()


def test_writing_settings_repeats_without_a_change(tmp_path: Path) -> None:
    """Stale files are brought up to date; doing it again changes nothing; the rest of the README stays."""
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n{generator.BEGIN}\nstale\n{generator.END}\nafter\n")
    generator.write(tmp_path)
    first = readme.read_text()
    generator.write(tmp_path)
    assert readme.read_text() == first
    assert first.startswith("# Before\n")
    assert first.endswith(f"{generator.END}\nafter\n")
    assert "stale" not in first
    assert "| `CARTWHEEL_TOP_K` | `10` |" in first


def test_a_readme_without_markers_is_refused() -> None:
    """Better an error than a second table."""
    with pytest.raises(InputError, match="markers"):
        generator.with_table("# README\n")


def test_the_env_example_with_every_line_uncommented_is_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file shows as a default is read back as that default."""
    for name in Settings.model_fields:
        monkeypatch.delenv(generator.variable(name), raising=False)
    shown = tmp_path / ".env"
    shown.write_text(re.sub(r"^#(?=CARTWHEEL_)", "", generator.env(), flags=re.MULTILINE))
    assert Settings(_env_file=shown) == Settings(_env_file=None)


def test_the_command_prints_both_formats() -> None:
    """`python -m contracts settings` prints the table, `--format env` the file."""
    command = [sys.executable, "-m", "contracts", "settings"]
    table = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    env = subprocess.run(
        [*command, "--format", "env"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert table == generator.markdown()
    assert env == generator.env()


def test_the_architecture_names_every_table_and_dag() -> None:
    """One row for each table and each DAG, no more and no fewer."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    tables = text.split("## Tables")[1].split("## DAGs")[0]
    dags = text.split("## DAGs")[1].split("## What fails")[0]
    assert re.findall(r"^\| `(\w+)` \|", tables, re.MULTILINE) == [table.name for table in TABLES]
    assert set(re.findall(r"^\| `(\w+)` \|", dags, re.MULTILINE)) == {*DAGS, *ON_DEMAND}


@pytest.mark.parametrize("dag", [*DAGS, BATCH_RECOMMEND, SEARCH_CONFIGURATION])
def test_the_architecture_names_the_steps_of_every_dag(dag: str) -> None:
    """A DAG's row lists the steps that its own description numbers, in order."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{dag}` |"))
    numbered = re.findall(r"^\d\. `(\w+)`", (REPOSITORY / "dags" / f"{dag}.py").read_text(), re.MULTILINE)
    assert row.split("|")[2].strip().split(", ") == numbered


def test_decisions_are_numbered_dated_and_listed() -> None:
    """ADRs have the numbers 1 to n, a date, the four chapters, and a line in the list."""
    folder = REPOSITORY / "docs" / "adr"
    files = sorted(folder.glob("0*.md"))
    listed = re.findall(r"^\d+\. \[.+\]\((.+)\)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [path.name for path in files]
    for number, path in enumerate(files, start=1):
        text = path.read_text(encoding="utf-8")
        assert path.name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        assert re.search(r"^20\d\d-\d\d-\d\d, (accepted|replaced by .+)$", text, re.MULTILINE), path.name
        chapters = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert chapters == ["Context", "Decision", "Consequences", "Alternatives"], path.name


def test_the_picture_of_the_loop_names_every_dag() -> None:
    """The picture shows the DAGs by the names they have."""
    picture = (REPOSITORY / "docs" / "loop.svg").read_text(encoding="utf-8")
    assert [dag for dag in DAGS if f">{dag}<" not in picture] == []


@cache
def our_files() -> dict[str, str]:
    """Text of every file that is in git or would be added to it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    content_by_name = {}
    for name in filter(None, listed):
        path = REPOSITORY / name
        if path.is_file():
            content = path.read_bytes()
            if b"\0" not in content[:8192]:
                content_by_name[name] = content.decode("utf-8", errors="replace")
    return content_by_name


def test_no_file_holds_a_path_of_a_machine() -> None:
    """Nobody else has these folders."""
    pattern = re.compile(r"(?<![\w.~-])/(?:" + "|".join(("work", "root", "home", "Users")) + r")/")
    assert {name: pattern.findall(text) for name, text in our_files().items() if pattern.search(text)} == {}


def test_no_file_holds_the_address_of_a_registry() -> None:
    """Where packages come from is the business of the machine they are installed on."""
    hosts = {
        "org": ("pypi", "pythonhosted", "npmjs", "maven", "anaconda", "golang", "debian"),
        "com": ("npmjs", "ubuntu"),
        "io": ("docker", "ghcr", "gcr", "quay", "crates"),
    }  # kept in two parts, so that this file needs no exception
    pattern = re.compile("|".join(rf"\b{name}\.{end}\b" for end, names in hosts.items() for name in names))
    assert {name: pattern.findall(text) for name, text in our_files().items() if pattern.search(text)} == {}


def test_the_readme_has_one_place_for_the_numbers() -> None:
    """The README leaves one marked place for the numbers, to be filled from var/summary.json."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- numbers -->") == 1
    assert text.count("<!-- /numbers -->") == 1


def test_the_examples_of_requests_are_json() -> None:
    """What curl sends in the README is one JSON object with instances."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    bodies = re.findall(r"-d '(\{.*?\})'", text, re.DOTALL)
    assert len(bodies) == 2
    assert all(json.loads(body)["instances"] for body in bodies)
