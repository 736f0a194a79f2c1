#!/bin/sh
# Create or renew a private environment: venv.sh PYTHON DIRECTORY REQUIREMENTS
# Only the python that is there, pip to fetch the pinned uv, uv to fetch the pinned rest; nothing is left half done:
# the .ready stamp comes last.
set -eu
python=$1 venv=$2 requirements=$3

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "aegis needs Python 3.11 or later; '$python' is $("$python" --version 2>&1). Name another: make PYTHON=/path/to/python3 ..." >&2
    exit 1
}

if ! "$venv/bin/uv" --version >/dev/null 2>&1 || ! "$venv/bin/python" -c "" 2>/dev/null; then
    rm -rf "$venv"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
        pip="$venv/bin/python -m pip"
    elif "$python" -m pip --version >/dev/null 2>&1; then  # Debian splits ensurepip off; its pip can still fill a bare venv
        "$python" -m venv --without-pip "$venv"
        pip="$python -m pip --python $venv/bin/python"
    else
        echo "'$python' has neither ensurepip nor pip. Install one of them (Debian, Ubuntu: the package python3-venv)." >&2
        exit 1
    fi
    $pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
fi
"$venv/bin/uv" pip sync --quiet --python "$venv/bin/python" --require-hashes requirements/uv.txt "$requirements"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
touch "$venv/.ready"
