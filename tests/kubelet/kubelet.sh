# A kubelet on the machine of machine.sh. Sourced.
#
#   kubelet_config YAML   writes its configuration; YAML is added to what any node here has
#   kubelet_start [FLAGS] starts it, and waits until it is healthy
#   kubelet_stop [SIGNAL]
#   daemon_kill, daemon_again

kubelet_config() {
    local parent=/$NODE_ID hierarchy
    # The kubelet wants its root in all hierarchies, with CPUs to give.
    for hierarchy in /sys/fs/cgroup/*/; do
        mkdir -p "$hierarchy$parent"
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$hierarchy$parent/$file" ] || cat "$hierarchy$file" >"$hierarchy$parent/$file"
        done
    done
    echo "nameserver $NODE_IP" >/run/resolv.conf
    cat - >/var/lib/kubelet/config.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: $ENDPOINT
failCgroupV1: false
cgroupDriver: ${CGROUP_DRIVER:-cgroupfs}
cgroupRoot: $parent
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
resolvConf: /run/resolv.conf
clusterDomain: cluster.local
volumePluginDir: /var/lib/kubelet/volume-plugins
staticPodPath: /var/lib/kubelet/manifests
fileCheckFrequency: 1s
nodeStatusUpdateFrequency: 2s
containerLogMaxSize: 64Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
crashLoopBackOff: { maxContainerRestartPeriod: 2s }
registryPullQPS: 0
eventRecordQPS: 0
$1
YAML
    mkdir -p /var/lib/kubelet/manifests
}

# The kubelet sets these when they differ; in its own view of /proc they do not, so that the host keeps its own.
declare -A tunables=([vm/overcommit_memory]=1 [vm/panic_on_oom]=0 [kernel/panic]=10 [kernel/panic_on_oops]=1
    [kernel/keys/root_maxkeys]=1000000 [kernel/keys/root_maxbytes]=25000000)

kubelet_start() {
    local name file view=''
    for name in "${!tunables[@]}"; do
        file=/run/tunables/${name//\//.}
        mkdir -p /run/tunables
        echo "${tunables[$name]}" >"$file"
        view+="mount --bind $file /proc/sys/$name; "
    done
    unshare --mount --propagation unchanged bash -ec "mount --make-private /proc; $view"' exec "$@"' kubelet \
        kubelet --config /var/lib/kubelet/config.yaml --hostname-override "$NODE_NAME" --node-ip "$NODE_IP" \
        --v "${KUBELET_V:-2}" "$@" >>"$OUT/kubelet.log" 2>&1 &
    echo $! >/run/kubelet.pid
    until_true 60 "the kubelet is healthy" kubelet_healthy
}

kubelet_healthy() {
    if ! kill -0 "$(cat /run/kubelet.pid)" 2>/dev/null; then
        echo "the kubelet ended; its log ends with:" >&2
        tail -5 "$OUT/kubelet.log" >&2
        exit 1
    fi
    [ "$(curl -s --max-time 2 http://127.0.0.1:10248/healthz)" = ok ]
}

# Cases run in shells of their own, so these do not wait for a child but for a process.
kubelet_stop() {
    end_process "${1:-TERM}" /run/kubelet.pid
}

daemon_kill() {
    end_process KILL /run/daemon.pid
}

daemon_again() {
    daemon_start
    echo "$DAEMON_PID" >/run/daemon.pid
}

end_process() {
    local pid
    pid=$(cat "$2")
    kill "-$1" "$pid"
    until_true 30 "process $pid ends" process_ended "$pid"
}

process_ended() { ! kill -0 "$1" 2>/dev/null; }
