"""Settings: where they come from, what is refused, and that nobody else reads the environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import InputError
from contracts.settings import REPOSITORY, Settings, settings

MAY_TOUCH_THE_ENVIRONMENT = {
    "contracts/settings.py": "reads secrets by name, CARTWHEEL_SECRET_NAME",
    "deploy/local/__main__.py": "hands the stack's environment to the processes that the loop starts",
    "deploy/local/classes.py": "starts a job with the environment, but for our settings",
    "deploy/local/java.py": "looks for a Java: JAVA_HOME and the PATH are not ours to name",
    "deploy/local/stack.py": "puts the virtual environment in front of the PATH",
    "deploy/local/supervision.py": "starts supervisord with the environment of the stack",
    "expectations/validation.py": "writes GX_ANALYTICS_ENABLED, which Great Expectations reads on import",
    "training/distribution.py": "reads TPU_NAME, which TensorFlow's users set",
    "training/launch.py": "writes TF_CONFIG, and what PySpark starts its workers with",
    "training/workers.py": "reads TF_CONFIG, by which TensorFlow's workers know each other",
}
"""Modules beside `contracts/settings.py` that use `os.environ`, each with its reason. None reads a setting of ours."""
CODE = ("contracts", "dags", "deploy", "expectations", "monitoring", "plugins", "serving", "spark_jobs", "training")
ACCESSES = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the reader's shell nor the reader's .env counts in these tests."""
    for name in [name for name in os.environ if name.startswith("CARTWHEEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    settings.cache_clear()
    yield
    settings.cache_clear()


def touches_environment(path: Path) -> bool:
    """Whether a module uses `os.environ` or one of its relatives."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in ACCESSES and getattr(node.value, "id", "") == "os":
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os" and ACCESSES & {alias.name for alias in node.names}:
            return True
    return False


def test_only_settings_and_a_few_named_modules_touch_the_environment() -> None:
    """The modules that use os.environ are exactly those listed above; a setting is read in one place."""
    files = [path for folder in CODE for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    modules = {str(path.relative_to(REPOSITORY)) for path in files if touches_environment(path)}
    assert modules == set(MAY_TOUCH_THE_ENVIRONMENT)


def test_every_setting_says_what_it_is_and_has_a_default() -> None:
    """Whoever sets nothing has a complete installation, and the README's table has no empty cell."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert not field.is_required(), name


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CARTWHEEL_AIRFLOW_PORT", "80800"),
        ("CARTWHEEL_AIRFLOW_PORT", "web"),
        ("CARTWHEEL_TOP_K", "9"),
        ("CARTWHEEL_AIRFLOW_PARALLELISM", "1"),
        ("CARTWHEEL_GATE_CONFIDENCE", "1"),
        ("CARTWHEEL_FOLD_OFFSETS", "1,two"),
        ("CARTWHEEL_RETRAIN_QUALITY_DROP", ""),
    ],
)
def test_a_bad_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """The error names the variable as one sets it, the value, and what it is for."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=variable) as caught:
        settings()
    field = Settings.model_fields[variable.removeprefix("CARTWHEEL_").lower()]
    assert caught.value.cure.endswith(str(field.description))


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable of the environment beats the same line in .env, which beats the default."""
    (tmp_path / ".env").write_text("CARTWHEEL_TOP_K=12\nCARTWHEEL_SEED=1\nPOSTGRES_PASSWORD=x\n")
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
    monkeypatch.setenv("CARTWHEEL_SEED", "2")
    assert (settings().top_k, settings().seed) == (12, 2)


def test_lists_of_numbers_are_written_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """`1, 2,30,` is (1, 2, 30)."""
    monkeypatch.setenv("CARTWHEEL_FOLD_OFFSETS", "1, 2,30,")
    assert settings().fold_offsets == (1, 2, 30)


def test_paths_start_at_the_repository_and_absolute_ones_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`var` is a folder of the repository; data lies beside its dataset file unless said otherwise."""
    assert settings().home_dir == REPOSITORY / "var"
    assert settings().data_path == REPOSITORY / "datasets"
    settings.cache_clear()
    monkeypatch.setenv("CARTWHEEL_HOME", str(tmp_path))
    monkeypatch.setenv("CARTWHEEL_DATA_DIR", str(tmp_path / "data"))
    assert settings().lake_uri == str(tmp_path / "tables")
    assert settings().data_path == tmp_path / "data"


def test_outside_servers_replace_our_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host and port make the address of our own server; a given address wins."""
    monkeypatch.setenv("CARTWHEEL_HOST", "127.0.0.2")
    monkeypatch.setenv("CARTWHEEL_REST_PORT", "9")
    monkeypatch.setenv("CARTWHEEL_MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert settings().serving_urls == ("http://127.0.0.2:9",)
    assert settings().gateway_url == "http://127.0.0.2:8600"
    assert settings().mlflow_uri == "http://mlflow:5000"


def test_reading_settings_loads_nothing_heavy() -> None:
    """No engine is imported on the way to a setting."""
    script = (
        "import sys, contracts.settings, contracts.names, contracts.tables, contracts.dataset; "
        "print({'tensorflow', 'pyspark', 'mlflow', 'airflow', 'great_expectations', 'scipy'}.isdisjoint(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True"


def test_a_secret_is_in_the_environment_or_in_a_private_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable wins over the file; a file that others can read is refused, and a missing secret says what to do."""
    chosen = Settings(home=tmp_path)
    with pytest.raises(InputError, match=r"no secret 'shop_db' \(in CARTWHEEL_SECRET_SHOP_DB\)"):
        chosen.secret("shop_db")
    chosen.secrets_path.write_text('{"shop_db": "from the file"}')
    chosen.secrets_path.chmod(0o600)
    assert chosen.secret("shop_db") == "from the file"
    monkeypatch.setenv("CARTWHEEL_SECRET_SHOP_DB", "from the environment")
    assert chosen.secret("shop_db") == "from the environment"
    monkeypatch.delenv("CARTWHEEL_SECRET_SHOP_DB")
    chosen.secrets_path.chmod(0o644)
    with pytest.raises(InputError, match="can be read by others"):
        chosen.secret("shop_db")
