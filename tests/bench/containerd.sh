#!/bin/bash
# A private containerd (Debian's) with its CRI plugin, as a peer to measure or to
# check the stand-in images against.
#
# usage: tests/bench/containerd.sh start DIR CERTS_D    prints the socket's path
#        tests/bench/containerd.sh stop DIR             ends it without a trace
#
# DIR becomes a tmpfs (with ON_DISK=1 it stays a directory) with root, state, socket, CNI configuration, network
# namespaces and log; nothing of the system's containerd is read or written.
# CERTS_D leads image names to a registry that has pause:3.9 (see
# `podwright-testkit certs.d`).
set -euo pipefail

start() {
    local dir=$1 certs=$2 tag bridge octet
    mkdir -p "$dir"
    if [ -n "${ON_DISK:-}" ]; then
        mount --bind "$dir" "$dir"
    else
        mount -t tmpfs -o mode=0755 podwright-bench "$dir"
    fi
    mkdir -p "$dir"/{root,state,cni/net.d,cni/ipam}
    tag=$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')
    bridge=ctrd$tag
    octet=$((16#${tag:0:2}))
    echo "$bridge" >"$dir/bridge"
    iptables-save -t nat 2>/dev/null | grep -q '^:CNI-HOSTPORT-' || touch "$dir/host-ports-are-ours"
    cat >"$dir/cni/net.d/10-bench.conflist" <<CNI
{
  "cniVersion": "1.0.0",
  "name": "$bridge",
  "plugins": [
    {
      "type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "$dir/cni/ipam",
        "ranges": [[{ "subnet": "10.89.$octet.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
CNI
    # The score limit: without CAP_SYS_RESOURCE a pod's score cannot go below containerd's own.
    cat >"$dir/config.toml" <<TOML
version = 2
root = "$dir/root"
state = "$dir/state"
oom_score = 0
disabled_plugins = [
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "$dir/containerd.sock"
[ttrpc]
  address = "$dir/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$certs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
TOML
    containerd --config "$dir/config.toml" >"$dir/containerd.log" 2>&1 &
    echo $! >"$dir/containerd.pid"
    # Ready is when the CRI plugin says so in the log: the socket is there earlier.
    for _ in $(seq 1 200); do
        if grep -q 'containerd successfully booted' "$dir/containerd.log"; then
            echo "$dir/containerd.sock"
            return 0
        fi
        kill -0 "$(cat "$dir/containerd.pid")" 2>/dev/null || break
        sleep 0.05
    done
    tail -20 "$dir/containerd.log" >&2
    return 1
}

# Pids whose command line names DIR: the daemon, its shims, nobody else's.
pids_of() {
    local dir=$1 pid
    for pid in /proc/[0-9]*; do
        pid=${pid#/proc/}
        [ "$pid" != $$ ] && [ "$pid" != "$PPID" ] || continue
        if tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q -e "^\S*containerd.* $dir/"; then
            echo "$pid"
        fi
    done
}

stop() {
    local dir=$1 bridge pid mounted cgroup crictl
    [ -e "$dir/containerd.pid" ] || { echo "no containerd in $dir" >&2; return 0; }
    # From here on every step is tried, whatever became of the one before.
    set +e
    crictl=${CRICTL:-$(dirname "$0")/../../build/bin/crictl}
    if [ -x "$crictl" ]; then
        "$crictl" --config /dev/null -r "unix://$dir/containerd.sock" rmp -a -f >/dev/null 2>&1 || true
    fi
    pid=$(cat "$dir/containerd.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 1 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    for pid in $(pids_of "$dir"); do
        # A shim left over still has its containers: they go first.
        for child in $(cat "/proc/$pid/task/$pid/children" 2>/dev/null); do kill -KILL "$child" 2>/dev/null || true; done
        kill -KILL "$pid" 2>/dev/null || true
    done
    bridge=$(cat "$dir/bridge")
    ip link delete "$bridge" 2>/dev/null || true
    for table in nat filter; do
        iptables-save -t "$table" 2>/dev/null | grep -e "\"$bridge\"" | sed -n 's/^-A/-D/p' |
            while read -r rule; do eval "iptables -w -t $table $rule"; done
    done
    # The portmap plugin's own chains stay for ever: they go when they came with us and are not in use.
    if [ -e "$dir/host-ports-are-ours" ] && ! iptables-save -t nat | grep -q '^-A CNI-HOSTPORT-DNAT '; then
        for table in iptables ip6tables; do
            "$table-save" -t nat 2>/dev/null | grep -E '^-A .* -j CNI-HOSTPORT-' | sed 's/^-A/-D/' |
                while read -r rule; do eval "$table -w -t nat $rule"; done
            for chain in $("$table-save" -t nat 2>/dev/null | sed -n 's/^:\(CNI-HOSTPORT-[A-Z]*\) .*/\1/p'); do
                "$table" -w -t nat -F "$chain" && "$table" -w -t nat -X "$chain"
            done
        done
    fi
    for mounted in $(awk -v d="$dir/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r); do
        umount -l "$mounted" 2>/dev/null || true
    done
    umount -l "$dir" && rm -rf "$dir"
    # Parents that the suite's pods had, empty by now. Never removed while in use.
    for cgroup in /sys/fs/cgroup/*/{k8s.io,system.slice,"$bridge"} /sys/fs/cgroup/{k8s.io,"$bridge"}; do
        [ -d "$cgroup" ] && find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
}

case "${1:-}" in
start) start "$(realpath -m "$2")" "$(realpath "$3")" ;;
stop) stop "$(realpath -m "$2")" ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
