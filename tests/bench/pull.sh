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
source "$(dirname "$0")/daemons.sh"
client=$(bench_client)

node_up web
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

echo "$(loads before), $(nproc) processors, Linux $(uname -r), stores on $(stat -f -c %T "$stores")"
echo
"$client" "${arguments[@]}" "${pulls[@]}" "$@" &
wait $!
loads after
