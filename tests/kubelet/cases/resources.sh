# CPU, memory, disk: limits, figures, changes. Sourced by cluster.sh.

resources=(qos-cgroups summary cadvisor-metrics oom-killed child-oom-killed resize resize-restart pod-resources
    writable-layer-limit empty-dir-limit pids)

# cgroup_of POD CONTROLLER  its directory
cgroup_of() {
    find "/sys/fs/cgroup/$2/$NODE_ID/kubepods" -maxdepth 2 -name "pod$(pod_get "$1" .metadata.uid)"
}

qos_cgroups_case() {
    shell_pod guaranteed '' '    resources: { limits: { cpu: 200m, memory: 32Mi } }'
    shell_pod burstable '' '    resources: { requests: { cpu: 100m }, limits: { memory: 48Mi } }'
    shell_pod besteffort
    local dir container
    dir=$(cgroup_of guaranteed memory)
    container=$(find "$dir" -mindepth 1 -maxdepth 1 -type d)
    [ "$(cat "$dir/memory.limit_in_bytes" "$container/memory.limit_in_bytes" | xargs)" = "$((32 << 20)) $((32 << 20))" ]
    [ "$(cat "$(cgroup_of guaranteed cpu)"/*/cpu.cfs_quota_us)" = 20000 ]
    [ "$(cat "$(cgroup_of burstable cpu)"/*/cpu.shares)" = 102 ]
    [[ "$(cgroup_of besteffort cpu)" == */besteffort/* ]]
    [ "$(k exec besteffort -- cat /proc/1/oom_score_adj)" = 1000 ]
    pod_is guaranteed '.status.containerStatuses[0].resources.limits.memory' 32Mi
}

summary_case() {
    shell_pod eats '' '    volumeMounts: [{ name: work, mountPath: /work }]
  volumes: [{ name: work, emptyDir: {} }]'
    k exec eats -- sh -c 'dd if=/dev/zero of=/grown bs=1M count=3; dd if=/dev/zero of=/work/file bs=1M count=5' 2>/dev/null
    until_true 90 "the figures are there" summary_complete
}

summary_complete() {
    kubectl get --raw "/api/v1/nodes/$NODE_NAME/proxy/stats/summary" >"$OUT/summary.json"
    jq -e --arg ns "$NS" '(.node.runtime.imageFs.usedBytes > 0) and (.pods[] | select(.podRef.namespace == $ns)
        | (.containers[0] | .rootfs.usedBytes >= 3145728 and .memory.workingSetBytes > 0 and .cpu.usageCoreNanoSeconds > 0)
          and (.volume[] | select(.name == "work") | .usedBytes >= 5242880)
          and .memory.workingSetBytes > 0 and .["ephemeral-storage"].usedBytes >= 8388608)' "$OUT/summary.json" >/dev/null
}

cadvisor_metrics_case() {
    shell_pod counted '' '    resources: { limits: { memory: 32Mi } }'
    until_true 60 "the resource metrics name the container" \
        metrics_have resource "container_memory_working_set_bytes\{container=\"shell\",namespace=\"$NS\",pod=\"counted\""
    # cAdvisor itself knows the names of containerd's and CRI-O's containers only; the cgroup is there.
    until_true 60 "cAdvisor counts its cgroup" metrics_have cadvisor "container_memory_working_set_bytes.*pod$(pod_get counted .metadata.uid)"
}

metrics_have() {
    grep -Eq "$2" <<<"$(kubectl get --raw "/api/v1/nodes/$NODE_NAME/proxy/metrics/$1")"
}

oom_killed_case() {
    k run hungry --image "$REPO/busybox:latest" --restart Never --overrides '{"spec":{"containers":[{"name":"c","image":"'"$REPO"'/busybox:latest",
        "command":["sh","-c","exec tail /dev/zero"],"resources":{"limits":{"memory":"24Mi"}}}]}}' >/dev/null
    phase Failed hungry
    pod_is hungry '.status.containerStatuses[0].state.terminated | "\(.exitCode) \(.reason)"' "137 OOMKilled"
}

child_oom_killed_case() {
    k run parent --image "$REPO/busybox:latest" --restart Never --overrides '{"spec":{"containers":[{"name":"c","image":"'"$REPO"'/busybox:latest",
        "command":["sh","-c","tail /dev/zero; echo survived; exit 3"],"resources":{"limits":{"memory":"24Mi"}}}]}}' >/dev/null
    phase Failed parent
    grep -q survived <<<"$(k logs parent)"
    pod_is parent '.status.containerStatuses[0].state.terminated.exitCode' 3
}

resize_case() {
    shell_pod sized '' '    resources: { requests: { cpu: 100m, memory: 32Mi }, limits: { cpu: 200m, memory: 32Mi } }'
    local id
    id=$(pod_get sized '.status.containerStatuses[0].containerID')
    k patch pod sized --subresource resize --patch '{"spec":{"containers":[{"name":"shell","resources":{
        "requests":{"cpu":"150m","memory":"40Mi"},"limits":{"cpu":"400m","memory":"48Mi"}}}]}}' >/dev/null
    until_true 60 "the status tells it" pod_is sized '.status.containerStatuses[0].resources | "\(.limits.cpu) \(.limits.memory) \(.requests.cpu)"' "400m 48Mi 150m"
    [ "$(cat "$(cgroup_of sized memory)"/*/memory.limit_in_bytes)" = $((48 << 20)) ]
    [ "$(cat "$(cgroup_of sized cpu)"/*/cpu.cfs_quota_us)" = 40000 ]
    # And down again.
    k patch pod sized --subresource resize --patch '{"spec":{"containers":[{"name":"shell","resources":{
        "requests":{"cpu":"50m","memory":"32Mi"},"limits":{"cpu":"100m","memory":"32Mi"}}}]}}' >/dev/null
    until_true 60 "the status tells it" pod_is sized '.status.containerStatuses[0].resources | "\(.limits.cpu) \(.limits.memory) \(.requests.cpu)"' "100m 32Mi 50m"
    [ "$(pod_get sized '.status.containerStatuses[0].containerID')" = "$id" ]
    pod_is sized '.status.conditions | map(select(.type | startswith("PodResize"))) | length' 0
}

resize_restart_case() {
    shell_pod sized '' '    resizePolicy: [{ resourceName: memory, restartPolicy: RestartContainer }]
    resources: { requests: { memory: 32Mi }, limits: { memory: 32Mi } }'
    k patch pod sized --subresource resize --patch '{"spec":{"containers":[{"name":"shell","resources":{
        "requests":{"memory":"48Mi"},"limits":{"memory":"48Mi"}}}]}}' >/dev/null
    until_true 60 "it was restarted" pod_is sized '.status.containerStatuses[0] | "\(.restartCount) \(.resources.limits.memory)"' "1 48Mi"
    ready pod/sized
}

pod_resources_case() {
    shell_pod whole '  resources: { requests: { cpu: 100m, memory: 32Mi }, limits: { cpu: 300m, memory: 64Mi } }'
    [ "$(cat "$(cgroup_of whole memory)/memory.limit_in_bytes")" = $((64 << 20)) ]
    [ "$(cat "$(cgroup_of whole cpu)/cpu.cfs_quota_us")" = 30000 ]
}

writable_layer_limit_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: writes }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: $REPO/busybox:latest
    command: [sh, -c, "dd if=/dev/zero of=/big bs=1M count=12; sleep 1000"]
    resources: { limits: { ephemeral-storage: 6Mi } }
YAML
    TIMEOUT=120 k wait --for=jsonpath='{.status.phase}'=Failed --timeout=120s pod/writes >/dev/null
    pod_is writes .status.reason Evicted
}

empty_dir_limit_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: writes }
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{ name: work, emptyDir: { sizeLimit: 2Mi } }]
  containers:
  - name: c
    image: $REPO/busybox:latest
    command: [sh, -c, "dd if=/dev/zero of=/work/big bs=1M count=5; sleep 1000"]
    volumeMounts: [{ name: work, mountPath: /work }]
YAML
    k wait --for=jsonpath='{.status.phase}'=Failed --timeout=120s pod/writes >/dev/null
    pod_is writes .status.reason Evicted
}

pids_case() {
    shell_pod pids
    # podPidsLimit of the kubelet's configuration.
    [ "$(cat "$(cgroup_of pids pids)/pids.max")" = 200 ]
    [[ "$(k exec pids -- sh -c 'for i in $(seq 300); do sleep 5 & done' 2>&1)" == *"can't fork"* ]]
}
