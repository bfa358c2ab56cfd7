#!/bin/bash
# Measures pulls by podwright against Debian's containerd, and against skopeo with
# umoci: the same images from one loopback registry, stores and registry on tmpfs.
#
# usage: tests/bench/pull.sh [flags of benches/cri, e.g. --pulls 5 --only gzip]
#        ON_DISK=1     the stores on the disk of /var/tmp; the registry stays on tmpfs
#        SELF_ONLY=1   podwright alone
#        KEEP_LOGS=DIR keeps both daemons' logs
#
# The table goes to stdout, the numbers to build/bench-pull.json.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d /tmp/podwright-bench.XXXXXX)
mount -t tmpfs -o mode=0755 podwright-bench "$work"
stores=$work/stores
[ -z "${ON_DISK:-}" ] || stores=$(mktemp -d /var/tmp/podwright-bench.XXXXXX)
export PODWRIGHT_SCRATCH=$stores/nodes
source "$here/../e2e/node.sh"
peer=$stores/containerd

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
    rm -rf "$stores"
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

# The registry's storage stays in memory, whatever the stores are on.
node_tmp_base=$work node_up web
arguments=()
if [ -z "${SELF_ONLY:-}" ]; then
    "$testkit" certs.d --dir "$work/certs.d" --registry "$REGISTRY"
    socket=$("$here/containerd.sh" start "$peer" "$work/certs.d")
    arguments+=(--a "containerd=unix://$socket" --a-pid "$(cat "$peer/containerd.pid")" --a-dir "$peer")
fi
arguments+=(--b "podwright=$ENDPOINT" --b-pid "$DAEMON_PID" --b-dir "$NODE" --b-metrics "$METRICS")
arguments+=(--registry "$REGISTRY" --work "$stores" --json "$root/build/bench-pull.json")
pulls=(--pulls 3)
[[ " $* " != *" --pulls "* ]] || pulls=()

# Whatever else runs here is part of the result: it should be seen.
echo "load before: $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors, Linux $(uname -r), stores on $(stat -f -c %T "$stores")"
echo
"$client" "${arguments[@]}" "${pulls[@]}" "$@" &
wait $!
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)"
