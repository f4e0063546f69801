#!/usr/bin/env bash
# Installs what is missing: Debian packages (as root) and the virtual environment. Starts nothing.
# setup.sh [PROGRAM...]: further programs, each of the package of its name.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A wanted=(
    [dockerd]=docker.io [iptables]=iptables [nginx]=nginx-light [redis-server]=redis-server
    [prometheus]=prometheus [go]=golang-go [systemd-analyze]=systemd [docker-registry]=docker-registry
    [chromium]=chromium [curl]=curl [jq]=jq [openssl]=openssl [ip]=iproute2 [prometheus-alertmanager]=prometheus-alertmanager
)
for program in "$@"; do
    wanted[$program]=$program
done
missing=()
for program in "${!wanted[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=("${wanted[$program]}")
done
[ -d /usr/share/gocode/src/github.com/gin-gonic/gin ] || missing+=(golang-github-gin-gonic-gin-dev)
[ -e /usr/lib/nginx/modules/ngx_http_lua_module.so ] || missing+=(libnginx-mod-http-lua)
[ -d /usr/share/gocode/src/github.com/prometheus/client_golang ] \
    || missing+=(golang-github-prometheus-client-golang-dev)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Missing here; install these Debian packages (or what they are called on your system), then run make again:" >&2
        echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    # The packages' own services must not start: everything here runs privately.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

stamp=.venv/.installed
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    echo "making the virtual environment .venv"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install -q --upgrade 'pip>=25.1'
    .venv/bin/python -m pip install -q -e . --group dev
    touch "$stamp"
fi
