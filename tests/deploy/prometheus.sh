#!/bin/bash
# deploy/prometheus against Debian's Prometheus: it takes the files, scrapes a
# daemon on loopback, and knows `up` and one of our metrics.
set -euo pipefail

. "$(dirname "$0")/../e2e/node.sh"
"$root/scripts/deps.sh" prometheus
work=$(mktemp -d)
prometheus=''
finish() {
    local code=$?
    [ -z "$prometheus" ] || { kill "$prometheus" && wait "$prometheus"; } 2>/dev/null || true
    node_down || code=1
    rm -rf "$work"
    exit $code
}
trap finish EXIT

promtool check rules "$root/deploy/prometheus/alerts.yml"
node_up critest
crictl version >/dev/null
cp "$root/deploy/prometheus/alerts.yml" "$work/"
# The same file with this node's port, and without a wait of a minute.
sed "s/127\.0\.0\.1:9615/$METRICS/" "$root/deploy/prometheus/prometheus.yml" >"$work/prometheus.yml"
printf 'global:\n  scrape_interval: 1s\n' >>"$work/prometheus.yml"
promtool check config "$work/prometheus.yml"
port=$(("$(cut -d: -f2 <<<"$METRICS")" % 20000 + 30000))
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" \
    --web.listen-address="127.0.0.1:$port" >"$work/log" 2>&1 &
prometheus=$!

# value QUERY  the one value of a query, when there is one
value() {
    curl -sf --get --data-urlencode "query=$1" "http://127.0.0.1:$port/api/v1/query" |
        jq -r '.data.result[0].value[1] // empty'
}
until_is() { # QUERY WANTED
    local got=''
    for _ in $(seq 1 240); do
        got=$(value "$1" || true)
        [ "$got" != "$2" ] || { echo "$1 is $2"; return 0; }
        kill -0 "$prometheus" || break
        sleep 0.25
    done
    echo "$1 is '$got', not $2" >&2
    tail -20 "$work/log" >&2
    return 1
}
until_is 'up{job="podwright"}' 1
until_is 'podwright_rpcs_total{method="Version", code="OK"} > bool 0' 1
until_is 'count(podwright_rpc_seconds_bucket) > bool 0' 1
daemon_stop || true
until_is 'up{job="podwright"}' 0
echo "prometheus.sh: passed"
