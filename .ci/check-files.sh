#!/usr/bin/env bash
# The files that other programs read: systemd's unit, Prometheus' scrape configuration and rules, shell scripts.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

for script in .ci/*.sh .ci/run examples/ci/*.sh; do bash -n "$script"; done

promtool check config --syntax-only config/prometheus/scrape.yml
promtool check rules config/prometheus/alerts.yml

# `verify` wants the program that ExecStart names; a stand-in does for the check.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sed "s#^ExecStart=[^ ]*#ExecStart=/bin/true#" systemd/orchestrator.service >"$folder/orchestrator.service"
systemd-analyze verify --man=no "$folder/orchestrator.service"
exposure=$(systemd-analyze security --offline=true --no-pager "$folder/orchestrator.service" | tail -1)
echo "$exposure"
echo "$exposure" | awk '{ for (i = 1; i <= NF; i++) if ($i == "orchestrator.service:") { exit !($(i + 1) <= 1.5) } exit 1 }'
