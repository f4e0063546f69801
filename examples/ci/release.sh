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

service=$1 image=$2 key=${3:-} reason=${4:-} link=${5:-}
url=${ORCHESTRATOR_URL%/} deadline=$((SECONDS + ${ORCHESTRATOR_TIMEOUT:-10800}))
: "${ORCHESTRATOR_TOKEN:?a token with the role submitter}"

# The token goes by a file of its own, so that it is not in the list of processes.
ask() {
    curl -sS --retry 8 --retry-connrefused --retry-delay 2 --max-time 90 "$@" \
        -H @<(printf 'Authorization: Bearer %s\n' "$ORCHESTRATOR_TOKEN") -w '\n%{http_code}'
}

body=$(jq -n --arg image "$image" --arg reason "$reason" --arg link "$link" --arg who "${WHO:-}" \
    '{image: $image, reason: $reason, link: $link, who: $who}')
answer=$(ask -X POST "$url/v1/services/$service/releases" -H 'Content-Type: application/json' \
    ${key:+-H "Idempotency-Key: $key"} -d "$body")
if [ "${answer##*$'\n'}" != 202 ]; then
    echo "refused: $(jq -r '.detail? // .' <<<"${answer%$'\n'*}")" >&2
    exit 10
fi
request=$(jq -r .request <<<"${answer%$'\n'*}")

release=
while [ $SECONDS -lt $deadline ]; do
    if [ -z "$release" ]; then
        answer=$(ask "$url/v1/requests/$request?wait=30") || true
    else
        answer=$(ask "$url/v1/releases/$release?wait=30") || true
    fi
    status=${answer##*$'\n'} said=${answer%$'\n'*}
    case $status in
        200) ;;
        000 | 408 | 429 | 5??) sleep 2; continue ;; # it goes on; only the waiting was disturbed
        *) echo "error: $status $(jq -r '.detail? // .' <<<"$said")" >&2; exit 1 ;;
    esac
    if [ -z "$release" ]; then
        case $(jq -r .state <<<"$said") in
            refused) echo "refused: $(jq -r .reason <<<"$said")" >&2; exit 10 ;;
            accepted) release=$(jq -r .release <<<"$said"); echo "$release: accepted" ;;
        esac
        continue
    fi
    now=$(jq -r '"\(.outcome // .phase // .state) \(.weight) % \(.mark.reason // "")"' <<<"$said")
    [ "$now" = "${shown:-}" ] || echo "$release: $now"
    shown=$now
    if [ "$(jq -r .state <<<"$said")" = ended ]; then
        outcome=$(jq -r .outcome <<<"$said")
        echo "$release: $outcome by $(jq -r .ended_by <<<"$said"): $(jq -r .ended_because <<<"$said")"
        case $outcome in
            promoted) exit 0 ;; rejected) exit 10 ;; rolled_back) exit 11 ;; superseded) exit 12 ;;
            aborted) exit 13 ;; failed) exit 14 ;; *) exit 1 ;;
        esac
    fi
done
echo "${release:-$request}: not over after ${ORCHESTRATOR_TIMEOUT:-10800} s; it goes on" >&2
exit 15
