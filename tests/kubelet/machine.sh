# The first process of the namespaces that run.sh makes: sets up the machine,
# then runs what was asked for. Never run outside them.
#
# As on a host with systemd, mounts are shared; unlike there, /run, /var/lib and
# /var/log are empty, for components have fixed names for files below them.
set -euo pipefail
source "$(dirname "$0")/../e2e/node.sh"
here=$root/tests/kubelet
export PATH=$root/build/kube:$bin:$PATH
mode=${1:-all}
[ $# = 0 ] || shift

NODE_IP=10.99.0.1
NODE_NAME=node.podwright.test
REPO=docker.io/podwright

# Copies of other scratch nodes' mounts: who removes such a node takes whoever has them for a part of it.
awk '$5 ~ "^/run/podwright-test/" { print $5 }' /proc/self/mountinfo | tac | xargs -r -n 1 umount -l
for dir in /run /var/lib /var/log; do
    mount -t tmpfs -o mode=755 tmpfs "$dir"
done
mkdir -p /run/lock /run/podwright-test /var/lib/kubelet
# What the runtime keeps is on a disk of a size of its own, so that it can be full.
mount -t tmpfs -o mode=755,size="${IMAGE_DISK:-1000m}" images /run/podwright-test
mount --make-rshared /

hostname "$NODE_NAME"
ip link set lo up
ip link add node0 type veth peer name wire0
ip address add "$NODE_IP/24" dev node0
ip link set wire0 up
ip link set node0 up
ip route add default dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward

source "$here/kubelet.sh"
source "$here/cases.sh"

finish() {
    local code=$?
    trap '' INT TERM
    exec 1>&8 2>&9
    set +e
    cp "${DAEMON_LOG:-/dev/null}" "$OUT/daemon.log"
    if [ -n "${SHELL_AT:-}" ]; then
        (cd "$SCRATCH" && KUBECONFIG=${KUBECONFIG:-} CONTAINER_RUNTIME_ENDPOINT=${ENDPOINT:-} bash -i)
    fi
    exit $code
}
exec 8>&1 9>&2
trap finish EXIT

node_tmp_base=$SCRATCH
node_up web
echo "$NODE_ID" >"$SCRATCH/node-id"
echo "$DAEMON_PID" >/run/daemon.pid
: >"$OUT/kubelet.log"
OURS=$ENDPOINT
if [ "${PEER:-}" = containerd ] || [ "$mode" = migration ]; then
    "$testkit" certs.d --dir "$SCRATCH/certs.d" --registry "$REGISTRY"
    ENDPOINT=unix://$("$root/tests/bench/containerd.sh" start /run/peer "$SCRATCH/certs.d")
    THEIRS=$ENDPOINT
fi
if [ "$mode" = migration ]; then
    source "$here/cluster.sh"
    source "$here/migration.sh"
    migration
    sums
    exit
fi
if [ "$mode" != cluster ]; then
    source "$here/standalone.sh"
    standalone
fi
if [ "$mode" != standalone ]; then
    source "$here/cluster.sh"
    cluster "$@"
fi
sums
