#!/bin/bash
# Measures podwright against Debian's containerd: same runc, same CNI plugins and
# configuration, images from one loopback registry, everything on tmpfs.
#
# usage: tests/bench/run.sh [flags of benches/cri, e.g. --rounds 100]
#        PEER_ONLY=1   containerd alone
#        SELF_ONLY=1   podwright alone
#        KEEP_LOGS=DIR keeps both daemons' logs
#
# The tables go to stdout, the numbers to build/bench.json.
set -euo pipefail
source "$(dirname "$0")/daemons.sh"
client=$(bench_client)

arguments=(--logs "$work/logs" --runtime "$(command -v runc)" --json "$root/build/bench.json")
if [ -z "${PEER_ONLY:-}" ]; then
    node_up web
    arguments+=(
        --b "podwright=$ENDPOINT" --b-pid "$DAEMON_PID" --b-dir "$NODE" --b-cgroup "/$NODE_ID"
        --b-binaries "$(readlink -f "${PODWRIGHT_BIN:-$bin/podwright}"),$(readlink -f "${PODWRIGHT_MONITOR:-$bin/podwright-monitor}")"
        --b-metrics "$METRICS"
    )
    registry=$REGISTRY
else
    NODE_TMP=$(mktemp -d "$work/registry.XXXXXX")
    registry=$(setsid "$testkit" registry start --dir "$NODE_TMP")
    "$testkit" images push --registry "$registry" --set web >/dev/null
fi
if [ -z "${SELF_ONLY:-}" ]; then
    "$testkit" certs.d --dir "$work/certs.d" --registry "$registry"
    socket=$("$here/containerd.sh" start "$peer" "$work/certs.d")
    arguments+=(
        --a "containerd=unix://$socket" --a-pid "$(cat "$peer/containerd.pid")" --a-dir "$peer" --a-cgroup "/$(cat "$peer/bridge")"
        --a-binaries "$(readlink -f "$(command -v containerd)"),$(readlink -f "$(command -v containerd-shim-runc-v2)")"
    )
fi

echo "$(loads before), $(nproc) processors, Linux $(uname -r), $(runc --version | head -1)"
echo
"$client" "${arguments[@]}" "$@" &
wait $!
loads after
