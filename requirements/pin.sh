#!/bin/sh
# Renew the pins: pin.sh UV. Names, versions, hashes and markers; no address, so any mirror serves.
set -eu
uv=$1
pin() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
        --no-emit-index-url --no-annotate --no-header "$@"
}
echo uv | pin - --output-file requirements/uv.txt
pin pyproject.toml --all-extras --group dev --output-file requirements/dev.txt
pin pyproject.toml --all-extras --group dev --group bench --output-file requirements/bench.txt
