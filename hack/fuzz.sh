#!/usr/bin/env bash
# Runs every fuzz target of the module for FUZZTIME each; go test takes one target at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${FUZZTIME:-30s}
count=0
for pkg in $(go list ./...); do
  dir=$(go list -f '{{.Dir}}' "$pkg")
  grep -qs '^func Fuzz' "$dir"/*_test.go || continue
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | awk '{print $2}' | sort -u); do
    echo "== $pkg $target ($fuzztime)"
    # Minimising each interesting input takes up to a minute by default: the whole budget.
    go test -run '^$' -fuzz "^${target}\$" -fuzztime "$fuzztime" -fuzzminimizetime 1x "$pkg"
    count=$((count + 1))
  done
done
if [ "$count" -eq 0 ]; then
  echo "no fuzz target found" >&2
  exit 1
fi
echo "$count fuzz targets ran"
