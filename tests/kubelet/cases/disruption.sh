# What happens to pods when something else ends or fills up. One at a time. Sourced by cluster.sh.

disruptions=(kubelet-restart daemon-killed-idle daemon-killed-under-load daemon-down monitor-killed
    drain stats-from-cri evented-pleg image-collection disk-pressure)

kubelet_restart_case() {
    k create deployment web --image "$REPO/web:latest" --replicas 3 >/dev/null
    k rollout status deployment/web --timeout 60s
    local before
    before=$(containers_of_deployment)
    kubelet_stop KILL
    kubelet_start --kubeconfig "$PKI/kubelet.conf"
    node_ready
    # Long enough for a kubelet that knows nothing of them to kill them.
    k annotate pods --all look=now >/dev/null
    sleep 5
    [ "$(containers_of_deployment)" = "$before" ]
    k exec deployment/web -- true
}

# Ids, attempts and restarts of all containers.
containers_of_deployment() {
    k get pods -o json | jq -r '.items[] | .metadata.uid as $uid | .status.containerStatuses[] | "\($uid) \(.containerID) \(.restartCount)"' | sort
}

node_ready() {
    # A lease or a status of before counts for nothing.
    kubectl wait --for=condition=Ready "node/$NODE_NAME" --timeout=60s >/dev/null
}

daemon_killed_idle_case() {
    k create deployment web --image "$REPO/web:latest" --replicas 3 >/dev/null
    k rollout status deployment/web --timeout 60s
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: ends }
spec:
  restartPolicy: Never
  containers: [{ name: c, image: "$REPO/busybox:latest", command: [sh, -c, "for i in 1 2 3 4 5; do echo \$i; sleep 1; done; exit 7"] }]
YAML
    ready pod/ends
    local before
    before=$(containers_of_deployment | grep -v "$(pod_get ends .metadata.uid)")
    daemon_kill
    # It ends, and writes, while nobody is there.
    sleep 6
    daemon_again
    phase Failed ends
    pod_is ends '.status.containerStatuses[0].state.terminated | "\(.exitCode) \(.reason)"' "7 Error"
    [ "$(k logs ends | xargs)" = "1 2 3 4 5" ]
    node_ready
    [ "$(containers_of_deployment | grep -v "$(pod_get ends .metadata.uid)")" = "$before" ]
    k exec deployment/web -- true
}

daemon_killed_under_load_case() {
    local round
    k create deployment load --image "$REPO/busybox:latest" --replicas 8 -- sh -c "trap 'exit 0' TERM; while :; do sleep 0.2; done" >/dev/null
    k patch deployment load -p '{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"busybox",
        "readinessProbe":{"exec":{"command":["true"]},"periodSeconds":1}}]}}}}' >/dev/null
    for round in 1 2 3 4; do
        k set env deployment/load ROUND=$round >/dev/null
        # In the middle of pods that come and go.
        sleep 2
        daemon_kill
        daemon_again
    done
    k rollout status deployment/load --timeout 120s
    until_true 60 "only the last round's pods are left" pods_are 8
    ready pods -l app=load
    [ "$(k get pods -o json | jq '[.items[].status.podIP] | unique | length')" = 8 ]
    # What the kubelet does not know of is not there.
    until_true 90 "no other sandbox runs" sandboxes_are 8
}

pods_are() { [ "$(k get pods -o name | wc -l)" = "$1" ]; }
sandboxes_are() { [ "$(crictl pods -q --namespace "$NS" | wc -l)" = "$1" ]; }

daemon_down_case() {
    shell_pod stays
    daemon_kill
    until_true 90 "the node is not ready" sh -c "! kubectl wait --for=condition=Ready node/$NODE_NAME --timeout=1s" >/dev/null 2>&1
    daemon_again
    until_true 60 "the node is ready" kubectl wait --for=condition=Ready "node/$NODE_NAME" --timeout=5s >/dev/null 2>&1
    [ "$(k exec stays -- hostname)" = stays ]
    pod_is stays '.status.containerStatuses[0].restartCount' 0
}

monitor_killed_case() {
    shell_pod lost
    local pid
    pid=$(crictl inspect "$(crictl ps -q --namespace "$NS")" | jq .info.pid)
    pid=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status")
    grep -q podwright-monitor "/proc/$pid/cmdline"
    kill -KILL "$pid"
    until_true 90 "the pod was made anew" pod_is lost '.status.containerStatuses[0].restartCount >= 1' true
    ready pod/lost
    [ "$(k exec lost -- hostname)" = lost ]
}

drain_case() {
    k create deployment web --image "$REPO/web:latest" --replicas 2 >/dev/null
    k rollout status deployment/web --timeout 60s
    k create poddisruptionbudget web --selector app=web --min-available 2 >/dev/null
    until_true 30 "the budget is counted" sh -c "[ \"\$(kubectl -n $NS get pdb web -o jsonpath={.status.currentHealthy})\" = 2 ]"
    fails kubectl drain "$NODE_NAME" --pod-selector app=web --timeout 5s --ignore-daemonsets --delete-emptydir-data
    k delete poddisruptionbudget web >/dev/null
    kubectl drain "$NODE_NAME" --timeout 60s --ignore-daemonsets --delete-emptydir-data --force
    kubectl uncordon "$NODE_NAME" >/dev/null
    k rollout status deployment/web --timeout 60s
}

# With this gate the kubelet takes all figures of pods from the runtime: network and processes, too, which cAdvisor
# has for containerd's and CRI-O's pods only.
stats_from_cri_case() {
    shell_pod counted
    reconfigure 'featureGates: { PodAndContainerStatsFromCRI: true }'
    until_true 60 "the runtime's figures are there" cri_summary_complete
    reconfigure ''
}

cri_summary_complete() {
    kubectl get --raw "/api/v1/nodes/$NODE_NAME/proxy/stats/summary" >"$OUT/summary-cri.json"
    jq -e --arg ns "$NS" '.pods[] | select(.podRef.namespace == $ns) | .network.name == "eth0"
        and .network.rxBytes > 0 and .process_stats.process_count > 0 and .memory.workingSetBytes > 0
        and .cpu.usageCoreNanoSeconds > 0 and .containers[0].memory.workingSetBytes > 0' "$OUT/summary-cri.json" >/dev/null
}

# The kubelet hears of changes by events, and looks at all containers rarely.
evented_pleg_case() {
    [[ "$(timeout 2 "$bin/crictl" --config /dev/null -r "$ENDPOINT" events 2>&1)" != *Unimplemented* ]] || skip "the runtime tells no events"
    reconfigure 'featureGates: { EventedPLEG: true }'
    shell_pod told
    k exec told -- sh -c 'kill -TERM 1' || true
    until_true 30 "the restart is told" pod_is told '.status.containerStatuses[0].restartCount' 1
    ready pod/told
    fails grep -q 'Evented PLEG: disabling' "$OUT/kubelet.log"
    reconfigure ''
}

image_collection_case() {
    k run web --image "$REPO/web:latest" >/dev/null
    ready pod/web
    crictl pull "$REPO/busybox:latest" >/dev/null
    # Any use is too much, and an image is soon old enough; 0s would be the default of two minutes.
    reconfigure 'imageGCHighThresholdPercent: 1
imageGCLowThresholdPercent: 0
imageMinimumGCAge: 1s'
    until_true 400 "the unused image is gone" image_gone "$REPO/busybox"
    fails image_gone "$REPO/web"
    reconfigure ''
}

image_gone() { ! crictl images -o json | jq -e --arg name "$1" '[.images[].repoTags[]?] | any(startswith($name))' >/dev/null; }

reconfigure() {
    kubelet_stop
    cluster_kubelet_config "$1"
    kubelet_start --kubeconfig "$PKI/kubelet.conf"
    node_ready
}

disk_pressure_case() {
    reconfigure 'imageMinimumGCAge: 1s
evictionHard: { imagefs.available: 20% }
evictionMinimumReclaim: { imagefs.available: 1Mi }
evictionPressureTransitionPeriod: 5s'
    shell_pod small
    crictl pull "$REPO/web:latest" >/dev/null
    # Somebody else fills the images' disk.
    local free
    free=$(df -k --output=avail /run/podwright-test | tail -1)
    fallocate -l "$((free * 9 / 10))K" /run/podwright-test/ballast
    until_true 90 "the node tells of it" kubectl wait --for=condition=DiskPressure "node/$NODE_NAME" --timeout=5s >/dev/null 2>&1
    until_true 90 "the image that nothing uses is gone" image_gone "$REPO/web"
    rm /run/podwright-test/ballast
    until_true 90 "it is over" kubectl wait --for=condition=DiskPressure=False "node/$NODE_NAME" --timeout=5s >/dev/null 2>&1
    reconfigure ''
}

# The pods of all cases have been deleted: the runtime has nothing left of them.
nothing_left_case() {
    kubectl delete pods --all-namespaces --all --now --wait=false >/dev/null
    until_true 120 "no pod is left" sh -c '[ -z "$(kubectl get pods -A -o name)" ]'
    until_true 120 "the runtime has none" sh -c "[ -z \"\$(crictl --config /dev/null -r $ENDPOINT pods -q)\" ]"
    until_true 60 "nothing is left of them" node_idle_quietly
    until_true 60 "no cgroup of a pod is left" sh -c "[ -z \"\$(find /sys/fs/cgroup/*/$NODE_ID/kubepods -name 'pod*-*' -print -quit)\" ]"
}
