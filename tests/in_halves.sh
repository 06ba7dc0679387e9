#!/usr/bin/env bash
# Runs all tests, in two processes at once: those that start servers, with those of virtual time, which
# take about as long as the servers are waited for, and the others.
#   usage: tests/in_halves.sh [PYTHON, default .venv/bin/python]
# The others' output is shown as it comes, that of the first after it. Either takes ten to twenty
# minutes; a single pytest runs all of them one after another, in twice that.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
with_servers=(tests/server tests/storage tests/signals tests/frontend tests/examples tests/timewarp)
output=$(mktemp)

# Both in the background, so that a signal ends both: this shell only waits.
"$python" -m pytest -o cache_dir=.pytest_cache/with_servers "${with_servers[@]}" >"$output" 2>&1 &
serving=$!
"$python" -m pytest "${with_servers[@]/#/--ignore=}" &
others=$!
trap 'kill "$serving" "$others" 2>/dev/null || true; rm -f "$output"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

status=0
wait "$others" || status=$?
wait "$serving" || status=$?
cat "$output"
exit "$status"
