#!/usr/bin/env bash
# Releases an image over the HTTP API and waits for the outcome. Needs curl and jq.
#
#   ORCHESTRATOR_URL=https://release.example.com:9181 ORCHESTRATOR_TOKEN=rot_... \
#       release.sh SERVICE IMAGE [KEY [REASON [LINK]]]
#
# Exit codes are those of `orchestrator release --wait`: 0 promoted, 10 refused or rejected, 11 rolled back,
# 12 superseded, 13 aborted, 14 failed to start, 15 timed out after ORCHESTRATOR_TIMEOUT seconds (10800), 1 else.
# WHO names the person on whose behalf it is.
set -euo pipefail

# A key of its own where none is given: what is sent again is the same release.
service=$1 image=$2 key=${3:-$(cat /proc/sys/kernel/random/uuid)} reason=${4:-} link=${5:-}
url=${ORCHESTRATOR_URL%/} deadline=$((SECONDS + ${ORCHESTRATOR_TIMEOUT:-10800}))
: "${ORCHESTRATOR_TOKEN:?a token with the role submitter}"

said=$(mktemp)
trap 'rm -f "$said"' EXIT

# Prints the status and leaves the body in $said. The token goes by a file of its own, so that it is not in
# the list of processes.
ask() {
    curl -sS --retry 8 --retry-connrefused --retry-delay 2 --max-time 90 "$@" \
        -H @<(printf 'Authorization: Bearer %s\n' "$ORCHESTRATOR_TOKEN") -o "$said" -w '%{http_code}'
}

tell() {
    jq -r "$1" "$said" 2>/dev/null || head -c 500 "$said"
}

body=$(jq -n --arg image "$image" --arg reason "$reason" --arg link "$link" --arg who "${WHO:-}" \
    '{image: $image, reason: $reason, link: $link, who: $who}')
status=$(ask -X POST "$url/v1/services/$service/releases" -H 'Content-Type: application/json' \
    -H "Idempotency-Key: $key" -d "$body")
if [ "$status" != 202 ]; then
    echo "refused: $status $(tell .detail)" >&2
    case $status in 4??) exit 10 ;; *) exit 1 ;; esac
fi
request=$(tell .request)

release=
while [ $SECONDS -lt $deadline ]; do
    if [ -z "$release" ]; then
        status=$(ask "$url/v1/requests/$request?wait=30") || true
    else
        status=$(ask "$url/v1/releases/$release?wait=30") || true
    fi
    case $status in
        200) ;;
        000 | 408 | 429 | 5??) sleep 2; continue ;; # it goes on; only the waiting was disturbed
        *) echo "error: $status $(tell .detail)" >&2; exit 1 ;;
    esac
    if [ -z "$release" ]; then
        case $(tell .state) in
            refused) echo "refused: $(tell .reason)" >&2; exit 10 ;;
            accepted) release=$(tell .release); echo "$release: accepted" ;;
        esac
        continue
    fi
    now=$(tell '"\(.outcome // .phase // .state) \(.weight) % \(.mark.reason // "")"')
    [ "$now" = "${shown:-}" ] || echo "$release: $now"
    shown=$now
    if [ "$(tell .state)" = ended ]; then
        outcome=$(tell .outcome)
        echo "$release: $outcome by $(tell .ended_by): $(tell .ended_because)"
        case $outcome in
            promoted) exit 0 ;; rejected) exit 10 ;; rolled_back) exit 11 ;; superseded) exit 12 ;;
            aborted) exit 13 ;; failed) exit 14 ;; *) exit 1 ;;
        esac
    fi
done
echo "${release:-$request}: not over after ${ORCHESTRATOR_TIMEOUT:-10800} s; it goes on" >&2
exit 15
