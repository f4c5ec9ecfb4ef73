#!/bin/sh
# Makes .venv from requirements.lock with nothing but a Python 3.11-3.13. Quick when nothing has changed.
# `setup.sh test` adds what only tests need.
set -eu
cd "$(dirname "$0")/../.."

fail() {
    echo "cartwheel: error: $1. Cure: $2" >&2
    exit 2
}

locks="requirements.lock"
[ "${1:-run}" = run ] || locks="$locks requirements-test.lock"
stamp=.venv/.cartwheel-setup
wanted="$(cat requirements*.lock pyproject.toml deploy/local/setup.sh | cksum) $PWD: $locks"
if [ -x .venv/bin/python ]; then
    case "$(cat "$stamp" 2>/dev/null)" in "$wanted"*) exit 0 ;; esac # what tests need includes the rest
fi

usable() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

python=
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if usable "$candidate"; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 on the PATH ($(python3 --version 2>/dev/null || echo 'no python3 at all'))" \
    "install one (on Debian or Ubuntu: apt install python3 python3-venv), or name it: make setup PYTHON=/path/to/python3.12"
echo "  Python: $("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')"

# uv from the PATH, else a private one.
bootstrap=var/uv
if uv --version >/dev/null 2>&1; then
    uv=uv
else
    uv=$bootstrap/bin/uv
    if ! "$uv" --version >/dev/null 2>&1; then
        echo "  Installing uv into $bootstrap"
        rm -rf "$bootstrap"
        if "$python" -m venv "$bootstrap" >/dev/null 2>&1; then
            "$bootstrap/bin/python" -m pip install --quiet --disable-pip-version-check uv ||
                fail "uv could not be installed" "read pip's message above; most likely there is no network"
        elif "$python" -m pip --version >/dev/null 2>&1; then
            rm -rf "$bootstrap"
            "$python" -m pip install --quiet --disable-pip-version-check --target "$bootstrap" uv ||
                fail "uv could not be installed" "read pip's message above; most likely there is no network"
        else
            rm -rf "$bootstrap"
            fail "this Python has neither venv nor pip" \
                "install one of them (on Debian or Ubuntu: apt install python3-venv), or uv"
        fi
    fi
fi

rm -f "$stamp" .venv/spark-classes.* # of the packages before
if ! usable .venv/bin/python; then
    "$uv" venv --quiet --clear --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
fi
export VIRTUAL_ENV="$PWD/.venv"
echo "  Installing the locked packages (a few minutes and 3 GB the first time)"
# Compiled now: where PYTHONDONTWRITEBYTECODE is set, as in many images, each process would do it again at every start.
# shellcheck disable=SC2086 # a list of files
"$uv" pip sync --require-hashes --compile-bytecode $locks ||
    fail "the locked packages could not be installed" "read uv's message above; most likely there is no network or no space"
"$uv" pip install --quiet --no-deps --no-build-isolation --editable . ||
    fail "Cartwheel itself could not be installed" "read uv's message above"
echo "$wanted" >"$stamp"
echo "  Ready: .venv"
