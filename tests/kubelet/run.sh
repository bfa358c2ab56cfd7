#!/bin/bash
# A real kubelet, and a real control plane, on podwright.
#
# usage: tests/kubelet/run.sh                  everything
#        tests/kubelet/run.sh standalone       a kubelet alone, with static pods
#        tests/kubelet/run.sh cluster [NAME..] a one-node cluster; only these cases
#        tests/kubelet/run.sh migration        a node that moves from containerd to podwright, and back
#        PEER=containerd  the same cases on Debian's containerd, to tell whose fault a failure is
#        JOBS=4      cases at once
#        OUT=DIR     where the components' logs go (build/kubelet)
#        SHELL_AT=end  a shell on the node when the cases are over; its end ends the node
#
# Prints a line for each case, "PASS name seconds", and a last one with the sums.
#
# All of it runs in a network, mount, PID, UTS and IPC namespace of its own, below one cgroup: the
# host's network, its /run, /var/log and kernel settings are not touched, and the kernel ends
# what runs in there when this script ends, however it ends.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export OUT=${OUT:-$root/build/kubelet}
scratch='' machine=''

# The cgroups of a node are named after it; nothing else is.
remove_cgroups() {
    local node
    [ -n "$scratch" ] && [ -e "$scratch/node-id" ] || return 0
    node=$(cat "$scratch/node-id")
    [[ "$node" =~ ^podw[0-9a-f]{6}$ ]] || return 0
    # Processes that were killed leave their cgroups a moment later.
    for _ in $(seq 1 100); do
        find /sys/fs/cgroup -depth -type d \( -path "*/$node" -o -path "*/$node/*" \) -exec rmdir {} + 2>/dev/null || true
        [ -n "$(find /sys/fs/cgroup -type d -name "$node" -print -quit)" ] || return 0
        sleep 0.1
    done
    echo "left: cgroups named $node" >&2
    return 1
}

finish() {
    local code=$?
    trap '' INT TERM
    [ -z "$machine" ] || { kill -KILL "$machine" 2>/dev/null; wait "$machine" 2>/dev/null; } || true
    remove_cgroups || code=1
    [ -z "$scratch" ] || rm -rf "$scratch"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$OUT"
# A fresh directory on a disk; the machine mounts a tmpfs of its own on it.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/podwright-kubelet.XXXXXX")
export SCRATCH=$scratch
# The namespaces' first process dies with unshare, unshare with this script, everything else with the first process.
setpriv --pdeathsig KILL unshare --mount --net --pid --uts --ipc --fork --kill-child=KILL --mount-proc \
    bash "$here/machine.sh" "$@" <&0 &
machine=$!
code=0
wait "$machine" || code=$?
machine=''
exit $code
