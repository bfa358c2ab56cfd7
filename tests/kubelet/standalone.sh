# A kubelet without an API server: static pods, and the kubelet's own endpoints. Sourced.

kubelet_api() {
    curl -sS --fail-with-body --max-time 20 -k "https://127.0.0.1:10250$1" "${@:2}"
}

# pod NAME FILTER  jq's answer on the pod's status as the kubelet tells it
static_pod() {
    kubelet_api /pods | jq -r ".items[]? | select(.metadata.name == \"$1-$NODE_NAME\") | $2"
}

static_pod_ready() {
    [ "$(static_pod "$1" '.status.conditions[]? | select(.type == "Ready") | .status')" = True ]
}

# The kubelet collects sandboxes once a minute: they may be there still.
static_pod_gone() {
    [ -z "$(static_pod "$1" .metadata.uid)" ] && [ -z "$(crictl ps -q --label "io.kubernetes.pod.name=$1-$NODE_NAME")" ]
}

# manifest NAME  the containers come on stdin
manifest() {
    {
        printf 'apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\nspec:\n' "$1"
        sed 's/^/  /'
    } >"/var/lib/kubelet/manifests/.$1"
    mv "/var/lib/kubelet/manifests/.$1" "/var/lib/kubelet/manifests/$1.yaml"
}

standalone() {
    standalone_config
    kubelet_start
    case_run standalone-static-pod static_pod_case
    case_run standalone-restart-policy restart_case
    case_run standalone-probes probes_case
    case_run standalone-host-network host_network_case
    case_run standalone-stats stats_case
    case_run standalone-kubelet-restart kubelet_case
    case_run standalone-daemon-killed daemon_case
    case_run standalone-removal removal_case
    case_run standalone-wrong-cgroup-driver driver_case
    kubelet_stop
    rm -f /var/lib/kubelet/manifests/* /var/lib/kubelet/*_state
    crictl rmp -fa >/dev/null 2>&1 || true
}

standalone_config() {
    kubelet_config 'authentication: { anonymous: { enabled: true }, webhook: { enabled: false } }
authorization: { mode: AlwaysAllow }'
}

static_pod_case() {
    manifest web <<YAML
containers:
- name: web
  image: $REPO/web:latest
  ports: [{ containerPort: 80, hostPort: 8088 }]
- name: beside
  image: $REPO/busybox:latest
  command: [sh, -c, "echo started; trap 'exit 0' TERM; while :; do sleep 0.2; done"]
  resources: { requests: { cpu: 10m, memory: 8Mi }, limits: { memory: 32Mi } }
YAML
    until_true 60 "the pod is ready" static_pod_ready web
    curl -sS --fail --max-time 5 "http://$(static_pod web .status.podIP)/" | grep -q Welcome
    curl -sS --fail --max-time 5 "http://$NODE_IP:8088/" | grep -q Welcome
    [ "$(kubelet_api "/containerLogs/default/web-$NODE_NAME/beside")" = started ]
    [ "$(kubelet_api "/run/default/web-$NODE_NAME/beside?cmd=hostname" -X POST)" = "web-$NODE_NAME" ]
    [ "$(static_pod web .status.qosClass)" = Burstable ]
}

restart_case() {
    manifest restarts <<YAML
containers:
- name: ends
  image: $REPO/busybox:latest
  command: [sh, -c, "echo try; sleep 0.5; exit 3"]
YAML
    until_true 60 "it was restarted twice" restarted restarts 2
    [ "$(static_pod restarts '.status.containerStatuses[0].lastState.terminated.exitCode')" = 3 ]
    [ "$(static_pod restarts '.status.containerStatuses[0].lastState.terminated.reason')" = Error ]
    kubelet_api "/containerLogs/default/restarts-$NODE_NAME/ends?previous=true" | grep -q try
    rm /var/lib/kubelet/manifests/restarts.yaml
    until_true 60 "it is gone" static_pod_gone restarts
}

restarted() {
    [ "$(static_pod "$1" '.status.containerStatuses[0].restartCount // 0')" -ge "$2" ]
}

probes_case() {
    manifest probes <<YAML
terminationGracePeriodSeconds: 1
containers:
- name: exec
  image: $REPO/busybox:latest
  command: [sh, -c, "touch /tmp/alive; sleep 5; rm /tmp/alive; sleep 600"]
  livenessProbe: { exec: { command: [cat, /tmp/alive] }, periodSeconds: 1, failureThreshold: 2 }
- name: http
  image: $REPO/web:latest
  readinessProbe: { httpGet: { port: 80 }, periodSeconds: 1 }
  startupProbe: { tcpSocket: { port: 80 }, periodSeconds: 1 }
YAML
    until_true 60 "the pod is ready" static_pod_ready probes
    until_true 60 "the liveness probe restarted it" restarted probes 1
    rm /var/lib/kubelet/manifests/probes.yaml
    until_true 60 "it is gone" static_pod_gone probes
}

host_network_case() {
    manifest host <<YAML
hostNetwork: true
terminationGracePeriodSeconds: 1
containers:
- name: shell
  image: $REPO/busybox:latest
  command: [sleep, "1000"]
YAML
    until_true 60 "the pod is ready" static_pod_ready host
    kubelet_api "/run/default/host-$NODE_NAME/shell?cmd=ip%20address" -X POST | grep -q node0
}

stats_case() {
    until_true 40 "stats of the pod" stats_complete
}

stats_complete() {
    kubelet_api /stats/summary >"$OUT/summary.json" || return 1
    jq -e --arg pod "web-$NODE_NAME" '.pods[] | select(.podRef.name == $pod)
        | (.containers | length == 2) and (.containers | all(.memory.workingSetBytes > 0 and .cpu.usageCoreNanoSeconds > 0
            and .rootfs.usedBytes != null and .logs.usedBytes != null))
          and .memory.workingSetBytes > 0' "$OUT/summary.json" >/dev/null
}

kubelet_case() {
    local before
    before=$(crictl ps -q | sort)
    kubelet_stop
    kubelet_start
    same_containers "$before"
}

daemon_case() {
    local before
    before=$(crictl ps -q | sort)
    daemon_kill
    daemon_again
    same_containers "$before"
}

same_containers() {
    until_true 60 "the pod is ready" static_pod_ready web
    [ "$(crictl ps -q | sort)" = "$1" ]
    kubelet_api "/containerLogs/default/web-$NODE_NAME/beside" | grep -q started
    [ "$(kubelet_api "/run/default/web-$NODE_NAME/beside?cmd=hostname" -X POST)" = "web-$NODE_NAME" ]
    [ "$(static_pod web '[.status.containerStatuses[].restartCount] | add')" = 0 ]
}

removal_case() {
    rm /var/lib/kubelet/manifests/*.yaml
    until_true 60 "the pod is gone" static_pod_gone web
    until_true 60 "the other is gone" static_pod_gone host
    until_true 90 "nothing is left of them" node_idle_quietly
}

node_idle_quietly() {
    [ -z "$(crictl ps -aq)" ] && [ -z "$(ls "/run/podwright-test/$NODE_ID/netns")" ] &&
        [ -z "$(ip -br link show type veth | grep -v -E '^(node|wire)0@')" ] && [ -z "$(ls "/var/log/pods")" ]
}

# The kubelet asks the runtime, whatever its own configuration says.
driver_case() {
    kubelet_stop
    CGROUP_DRIVER=systemd standalone_config
    kubelet_start
    manifest driver <<YAML
containers:
- name: shell
  image: $REPO/busybox:latest
  command: [sleep, "1000"]
YAML
    until_true 60 "the pod is ready" static_pod_ready driver
    kubelet_api /configz | jq -e '.kubeletconfig.cgroupDriver == "cgroupfs"'
}
