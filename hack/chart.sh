#!/usr/bin/env bash
# Copies the manifests that the chart and config/ share into the chart. The chart's templates
# add labels and the release's namespace; test/chart checks that the copies are current.
set -euo pipefail
cd "$(dirname "$0")/.."
files=charts/sandbox-egress/files
for pair in crd/bases:crd rbac:rbac webhook:webhook admission-policy:admission-policy; do
  from=config/${pair%%:*} to=$files/${pair##*:}
  manifests=$(find "$from" -maxdepth 1 -name '*.yaml' ! -name kustomization.yaml)
  if [ -z "$manifests" ]; then
    echo "hack/chart.sh: $from holds no manifests" >&2
    exit 1
  fi
  rm -rf "$to"
  mkdir -p "$to"
  while read -r f; do cp "$f" "$to/"; done <<<"$manifests"
done
