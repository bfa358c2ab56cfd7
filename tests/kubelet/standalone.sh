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
    if [ -n "${LOOK:-}" ]; then
        case_run standalone-look look_case
        return
    fi
    case_run standalone-static-pod static_pod_case
    case_run standalone-restart-policy restart_case
    case_run standalone-probes probes_case
    case_run standalone-host-network host_network_case
    case_run standalone-stats stats_case
    case_run standalone-look look_case
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
    grep -q Welcome <<<"$(curl -sS --fail --max-time 5 "http://$(static_pod web .status.podIP)/")"
    grep -q Welcome <<<"$(curl -sS --fail --max-time 5 "http://$NODE_IP:8088/")"
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
    grep -q try <<<"$(kubelet_api "/containerLogs/default/restarts-$NODE_NAME/ends?previous=true")"
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
    grep -q node0 <<<"$(kubelet_api "/run/default/host-$NODE_NAME/shell?cmd=ip%20address" -X POST)"
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
    grep -q started <<<"$(kubelet_api "/containerLogs/default/web-$NODE_NAME/beside")"
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

# What a pod's life looks like, for tests/kubelet/compare.sh: as the kubelet and as the runtime tell it.
look_case() {
    rm -rf "$OUT/look"
    mkdir -p "$OUT/look"
    manifest look <<YAML
terminationGracePeriodSeconds: 5
hostname: looks
securityContext: { supplementalGroups: [4000], sysctls: [{ name: net.ipv4.ip_local_port_range, value: "32000 33000" }] }
volumes:
- { name: disk, emptyDir: {} }
- { name: memory, emptyDir: { medium: Memory } }
- { name: host, hostPath: { path: /run/resolv.conf, type: File } }
initContainers:
- { name: init, image: "$REPO/busybox:latest", command: ["true"] }
containers:
- name: runs
  image: $REPO/busybox:latest
  command: [sh, -c, "echo -n message >/dev/termination-log; trap 'exit 3' TERM; while :; do sleep 0.2; done"]
  env: [{ name: KEY, value: value }]
  ports: [{ containerPort: 80, protocol: TCP, name: http, hostPort: 8099 }]
  resources: { requests: { cpu: 50m, memory: 16Mi }, limits: { cpu: 500m, memory: 48Mi } }
  securityContext: { runAsUser: 1000, runAsGroup: 1001, readOnlyRootFilesystem: true, capabilities: { drop: [ALL], add: [CHOWN] }, seccompProfile: { type: RuntimeDefault } }
  volumeMounts:
  - { name: disk, mountPath: /disk }
  - { name: memory, mountPath: /memory, readOnly: true }
  - { name: host, mountPath: /etc/host-resolv.conf, readOnly: true }
- name: plain
  image: $REPO/web:latest
- { name: privileged, image: "$REPO/busybox:latest", command: [sleep, "1000"], securityContext: { privileged: true } }
- name: hungry
  image: $REPO/busybox:latest
  command: [sh, -c, "[ -e /disk/fed ] && exec sleep 1000; touch /disk/fed; exec tail /dev/zero"]
  volumeMounts: [{ name: disk, mountPath: /disk }]
  resources: { limits: { memory: 16Mi } }
- name: broken
  image: $REPO/busybox:latest
  command: [/does/not/exist]
YAML
    until_true 60 "four of five run" sh -c "[ \"\$(curl -sk https://127.0.0.1:10250/pods | jq '[.items[] | select(.metadata.name | startswith(\"look\")) | .status.containerStatuses[]? | select(.ready)] | length')\" = 4 ]"
    until_true 60 "the fifth has failed" sh -c "[ \"\$(curl -sk https://127.0.0.1:10250/pods | jq '[.items[] | select(.metadata.name | startswith(\"look\")) | .status.containerStatuses[]? | select(.name == \"broken\") | .restartCount] | add')\" -ge 1 ]"
    look running
    local name
    for name in runs plain privileged; do
        kubelet_api "/run/default/look-$NODE_NAME/$name?cmd=env" -X POST | sort >"$OUT/look/$name.env"
        kubelet_api "/run/default/look-$NODE_NAME/$name?cmd=cat%20/proc/self/mounts" -X POST | awk '{ print $2, $3, $4 }' | sort >"$OUT/look/$name.mounts"
        kubelet_api "/run/default/look-$NODE_NAME/$name?cmd=cat%20/proc/self/status" -X POST | grep -E '^(Uid|Gid|Groups|Cap|NoNew|Seccomp:)' >"$OUT/look/$name.status"
        kubelet_api "/run/default/look-$NODE_NAME/$name?cmd=ls%20-l%20/dev" -X POST | awk '{ print $1, $3, $4, $NF }' | sort >"$OUT/look/$name.dev"
        kubelet_api "/run/default/look-$NODE_NAME/$name?cmd=cat%20/etc/hosts%20/etc/hostname%20/etc/resolv.conf" -X POST >"$OUT/look/$name.etc"
        kubelet_api "/run/default/look-$NODE_NAME/$name?cmd=cat%20/proc/self/cgroup" -X POST >"$OUT/look/$name.cgroup"
        kubelet_api "/run/default/look-$NODE_NAME/$name?cmd=cat%20/proc/self/limits" -X POST >"$OUT/look/$name.limits"
    done
    crictl stop "$(crictl ps -q --name runs)" >/dev/null
    until_true 60 "it was restarted" sh -c "[ \"\$(curl -sk https://127.0.0.1:10250/pods | jq '[.items[] | select(.metadata.name | startswith(\"look\")) | .status.containerStatuses[] | select(.name == \"runs\") | .restartCount] | add')\" = 1 ]"
    look restarted
    rm /var/lib/kubelet/manifests/look.yaml
    until_true 60 "it is gone" static_pod_gone look
    look ended
}

# look STAGE
look() {
    local id
    kubelet_api /pods | jq '.items[]? | select(.metadata.name | startswith("look"))' >"$OUT/look/$1.pod.json"
    for id in $(crictl pods -q --name "look-$NODE_NAME"); do
        crictl inspectp "$id" >"$OUT/look/$1.sandbox.json"
    done
    for id in $(crictl ps -a -q --label "io.kubernetes.pod.name=look-$NODE_NAME"); do
        crictl inspect "$id" >"$OUT/look/inspect"
        mv "$OUT/look/inspect" "$OUT/look/$1.$(jq -r '.status.metadata | "\(.name).\(.attempt)"' "$OUT/look/inspect").json"
    done
    crictl stats -o json --label "io.kubernetes.pod.name=look-$NODE_NAME" >"$OUT/look/$1.stats.json"
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
