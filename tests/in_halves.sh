#!/usr/bin/env bash
# Runs all tests, in two processes at once: those that start servers, and the others.
#   usage: tests/in_halves.sh [PYTHON, default .venv/bin/python] [pytest's options]
# The others' output is shown as it comes, that of those with servers after it. Either takes about ten
# minutes; a single pytest runs all of them one after another, in twice that.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
shift || true
with_servers=(tests/server tests/storage tests/signals tests/frontend tests/examples)

output=$(mktemp)
"$python" -m pytest "$@" "${with_servers[@]}" >"$output" 2>&1 &
half=$!
trap 'kill "$half" 2>/dev/null || true; rm -f "$output"' EXIT

status=0
"$python" -m pytest "$@" "${with_servers[@]/#/--ignore=}" || status=$?
wait "$half" || status=$?
cat "$output"
exit "$status"
