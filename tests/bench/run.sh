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
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d /tmp/podwright-bench.XXXXXX)
mount -t tmpfs -o mode=0755 podwright-bench "$work"
export PODWRIGHT_SCRATCH=$work/nodes
source "$here/../e2e/node.sh"
peer=$work/containerd

finish() {
    local code=$?
    trap '' INT TERM
    exec 1>&8 2>&9
    set +e
    if [ -n "${KEEP_LOGS:-}" ]; then
        mkdir -p "$KEEP_LOGS"
        cp "$peer/containerd.log" "${DAEMON_LOG:-}" "$KEEP_LOGS/" 2>/dev/null
    elif [ $code != 0 ] && [ $code -lt 128 ]; then
        for log in "$peer/containerd.log" "${DAEMON_LOG:-}"; do
            [ -e "$log" ] && { echo "$log ends with:"; tail -20 "$log"; } >&2
        done
    fi
    [ ! -e "$peer/containerd.pid" ] || "$here/containerd.sh" stop "$peer" || code=1
    node_down || code=1
    umount -l "$work" && rmdir "$work" || code=1
    exit $code
}
exec 8>&1 9>&2
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Compiled before anything runs: a compiler beside the measurement spoils it.
cd "$root"
client=${BENCH_CLIENT:-$(cargo bench --locked --bench cri --no-run --message-format json 2>"$work/cargo" |
    jq -r 'select(.executable != null and .target.name == "cri") | .executable')}
[ -x "$client" ] || { cat "$work/cargo"; exit 1; } >&2

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

# Whatever else runs here is part of the result: it should be seen.
echo "load before: $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors, Linux $(uname -r), $(runc --version | head -1)"
echo
"$client" "${arguments[@]}" "$@" &
wait $!
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)"
