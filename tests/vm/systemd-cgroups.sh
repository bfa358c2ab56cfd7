#!/bin/bash
# Cgroups by systemd, looked at from outside, in the guest of tests/vm/run.sh: scopes where they belong, limits that a
# reload of systemd does not undo, nothing left. Runs with runc, then with crun.
#
# usage: STEPS=script:systemd-cgroups.sh tests/vm/run.sh
set -uo pipefail
export PODWRIGHT_TEST_CGROUP_DRIVER=systemd CRICTL_TIMEOUT=300s
bad=0
check() { # WHAT EXPECTED FOUND
    if [ "$2" = "$3" ]; then echo "ok: $1"; else echo "FAILED: $1: expected $2, found $3"; bad=1; fi
}

one() {
    export RUNTIME=$1
    source "$(dirname "$0")/../e2e/node.sh"
    node_up critest || { cat "$DAEMON_LOG"; return 1; }
    local image slice pod ctr cgroup
    image=$(awk '/busybox/ { print $1; exit }' "$NODE_TMP/images")
    slice=${NODE_ID}-pod1.slice
    cat >"$NODE_TMP/pod.json" <<END
{ "metadata": { "name": "one", "namespace": "default", "uid": "1" }, "log_directory": "$LOGS",
  "linux": { "cgroup_parent": "/$NODE_ID.slice/$slice" } }
END
    cat >"$NODE_TMP/ctr.json" <<END
{ "metadata": { "name": "main" }, "image": { "image": "$image" }, "command": ["sleep", "1000000"], "log_path": "main.log",
  "linux": { "resources": { "memory_limit_in_bytes": 67108864, "cpu_shares": 512, "cpu_quota": 50000, "cpu_period": 100000 } } }
END
    crictl pull "$image" || return 1
    pod=$(crictl runp "$NODE_TMP/pod.json") || return 1
    ctr=$(crictl create "$pod" "$NODE_TMP/ctr.json" "$NODE_TMP/pod.json") || return 1
    crictl start "$ctr" || return 1
    cgroup=/sys/fs/cgroup/$NODE_ID.slice/$slice/podwright-$ctr.scope
    # crun makes one of its own in the scope, which is not systemd's to change.
    local limited=$cgroup
    [ ! -d "$cgroup/container" ] || limited=$cgroup/container
    check "$RUNTIME: the scope is below its slice" active "$(systemctl is-active "podwright-$ctr.scope")"
    check "$RUNTIME: its process is in it" 1 "$(wc -l <"$limited/cgroup.procs")"
    check "$RUNTIME: its memory is limited" 67108864 "$(cat "$limited/memory.max")"
    check "$RUNTIME: exec works" hello "$(crictl exec "$ctr" echo hello)"
    [ "$limited" != "$cgroup" ] ||
        check "$RUNTIME: systemd knows the limit" 67108864 "$(systemctl show -P MemoryMax "podwright-$ctr.scope")"
    crictl update --memory 100663296 --cpu-share 1024 "$ctr" || bad=1
    check "$RUNTIME: the new limit is in force" 100663296 "$(cat "$limited/memory.max")"
    systemctl daemon-reload
    # A reload applies the units' properties again when something changes in them.
    systemctl set-property --runtime "podwright-$ctr.scope" TasksMax=1000
    check "$RUNTIME: a reload does not undo it" 100663296 "$(cat "$limited/memory.max")"
    [ "$limited" != "$cgroup" ] ||
        check "$RUNTIME: systemd knows the new limit" 100663296 "$(systemctl show -P MemoryMax "podwright-$ctr.scope")"
    check "$RUNTIME: stats tell the limit" true \
        "$(crictl stats -o json | jq '.stats[0].memory.availableBytes.value | tonumber | . > 0 and . <= 100663296')"
    crictl statsp -o json | jq -c '.stats[0].linux | [.cpu.usageCoreNanoSeconds, .memory.usageBytes, .process]'
    crictl stop --timeout 0 "$ctr" && crictl rm "$ctr" && crictl stopp "$pod" && crictl rmp "$pod"
    check "$RUNTIME: no cgroup is left in the pod's" "" "$(find /sys/fs/cgroup -type d -name '*.scope' | grep "$ctr")"
    check "$RUNTIME: no unit is left" "" "$(systemctl list-units --all --no-legend "podwright-$ctr*")"
    node_down || bad=1
}

for runtime in runc crun; do
    one "$runtime" || { echo "FAILED: $runtime"; bad=1; node_down; }
done
exit $bad
