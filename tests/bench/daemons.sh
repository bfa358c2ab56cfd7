# What the benchmarks share: a tmpfs, both daemons' places, and the way back from
# wherever they end. Sourced, not run; brings tests/e2e/node.sh with it.
#
#   work            a tmpfs of the run
#   stores          where the daemons lie: on it, or with ON_DISK=1 on the disk of /var/tmp
#   peer            containerd's directory
#   before_finish   a function that a benchmark may define: what its end begins with
#   bench_client    prints the path of benches/cri, which it compiles first
#   loads WORD      what else runs here is part of the result: it should be seen
#
# KEEP_LOGS=DIR keeps both daemons' logs.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d /tmp/podwright-bench.XXXXXX)
mount -t tmpfs -o mode=0755 podwright-bench "$work"
stores=$work/stores
[ -z "${ON_DISK:-}" ] || stores=$(mktemp -d /var/tmp/podwright-bench.XXXXXX)
export PODWRIGHT_SCRATCH=$stores/nodes
# The registry's storage stays in memory, whatever the stores are on.
node_tmp_base=$work
source "$here/../e2e/node.sh"
peer=$stores/containerd

before_finish() { :; }

finish() {
    local code=$?
    trap '' INT TERM
    exec 1>&8 2>&9
    set +e
    before_finish
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
bench_client() {
    local client
    client=${BENCH_CLIENT:-$(cd "$root" && cargo bench --locked --bench cri --no-run --message-format json 2>"$work/cargo" |
        jq -r 'select(.executable != null and .target.name == "cri") | .executable')}
    [ -x "$client" ] || { cat "$work/cargo"; return 1; } >&2
    echo "$client"
}

loads() {
    echo "load $1: $(cut -d' ' -f1-3 /proc/loadavg)"
}
