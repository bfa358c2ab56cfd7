# Who a container runs as and what it may. Sourced by cluster.sh.

security=(users groups-policy run-as-non-root capabilities seccomp read-only-root privileged sysctls
    unprivileged-ports user-namespace proc-mount)

users_case() {
    shell_pod users '  securityContext: { runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [4000] }'
    [ "$(k exec users -- sh -c 'id -u; id -g; id -G')" = $'1000\n3000\n3000 4000' ]
    pod_is users '.status.containerStatuses[0].user.linux | "\(.uid) \(.gid) \(.supplementalGroups | sort | map(tostring) | join(","))"' "1000 3000 3000,4000"
}

groups_policy_case() {
    # uid 0 of the image is in group 10; Strict leaves it out.
    shell_pod merge '  securityContext: { supplementalGroupsPolicy: Merge, supplementalGroups: [4000] }'
    shell_pod strict '  securityContext: { supplementalGroupsPolicy: Strict, supplementalGroups: [4000] }'
    [ "$(k exec merge -- id -G)" = "0 10 4000" ]
    [ "$(k exec strict -- id -G)" = "0 4000" ]
}

run_as_non_root_case() {
    k run root --image "$REPO/busybox:latest" --overrides '{"spec":{"securityContext":{"runAsNonRoot":true}}}' >/dev/null
    until_true 60 "it is refused" waits_for root CreateContainerConfigError
    k delete pod root --now >/dev/null
    shell_pod user '  securityContext: { runAsNonRoot: true, runAsUser: 33 }'
    [ "$(k exec user -- id -un)" = www-data ]
}

capabilities_case() {
    shell_pod none '' '    securityContext: { capabilities: { drop: [ALL] } }'
    shell_pod some '' '    securityContext: { capabilities: { drop: [ALL], add: [NET_ADMIN] } }'
    [ "$(k exec none -- grep CapEff /proc/1/status | awk '{ print $2 }')" = 0000000000000000 ]
    [ "$(k exec some -- grep CapEff /proc/1/status | awk '{ print $2 }')" = 0000000000001000 ]
    k exec some -- ip link add bridge0 type bridge
}

seccomp_case() {
    mkdir -p /var/lib/kubelet/seccomp
    echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}' >/var/lib/kubelet/seccomp/no-mkdir.json
    shell_pod default '  securityContext: { seccompProfile: { type: RuntimeDefault } }'
    shell_pod local '  securityContext: { seccompProfile: { type: Localhost, localhostProfile: no-mkdir.json } }'
    shell_pod none '  securityContext: { seccompProfile: { type: Unconfined } }'
    [ "$(k exec default -- grep Seccomp: /proc/1/status | awk '{ print $2 }')" = 2 ]
    [ "$(k exec none -- grep Seccomp: /proc/1/status | awk '{ print $2 }')" = 0 ]
    fails k exec local -- mkdir /tmp/x
    k exec none -- mkdir /tmp/x
    fails k exec default -- unshare -U true
}

read_only_root_case() {
    shell_pod ro '  volumes: [{ name: tmp, emptyDir: {} }]' '    securityContext: { readOnlyRootFilesystem: true, allowPrivilegeEscalation: false }
    volumeMounts: [{ name: tmp, mountPath: /tmp }]'
    fails k exec ro -- touch /file
    k exec ro -- touch /tmp/file
    [ "$(k exec ro -- grep NoNewPrivs /proc/1/status | awk '{ print $2 }')" = 1 ]
}

privileged_case() {
    shell_pod all '' '    securityContext: { privileged: true }'
    k exec all -- sh -c 'mount -t tmpfs tmpfs /mnt 2>/dev/null || { mkdir -p /mnt && mount -t tmpfs tmpfs /mnt; }; test -e /dev/kmsg; mount | grep -q "cgroup.*rw"'
}

sysctls_case() {
    shell_pod safe '  securityContext: { sysctls: [{ name: net.ipv4.ip_local_port_range, value: "32000 33000" }] }'
    [ "$(k exec safe -- cat /proc/sys/net/ipv4/ip_local_port_range | xargs)" = "32000 33000" ]
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: unsafe }
spec:
  securityContext: { sysctls: [{ name: kernel.msgmax, value: "65536" }] }
  containers: [{ name: c, image: "$REPO/busybox:latest" }]
YAML
    until_true 30 "the kubelet forbids it" pod_is unsafe .status.reason SysctlForbidden
}

unprivileged_ports_case() {
    shell_pod ports '  securityContext: { runAsUser: 1000 }' '    securityContext: { capabilities: { drop: [ALL] } }'
    k exec ports -- sh -c 'timeout 1 nc -l -p 80; [ $? = 143 ]'
}

user_namespace_case() {
    if ! kubectl get node "$NODE_NAME" -o json | jq -e '.status.runtimeHandlers[] | select(.name == "") | .features.userNamespaces' >/dev/null; then
        skip "no handler has user namespaces"
    fi
    shell_pod mapped '  hostUsers: false
  volumes: [{ name: work, emptyDir: {} }]' '    volumeMounts: [{ name: work, mountPath: /work }]'
    k exec mapped -- sh -c '[ "$(id -u)" = 0 ] && touch /work/file && [ "$(stat -c %u /work/file)" = 0 ]'
    [ "$(k exec mapped -- awk '{ print $2 }' /proc/self/uid_map)" != 0 ]
}

proc_mount_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: proc }
spec:
  hostUsers: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: $REPO/busybox:latest
    command: [sh, -c, "mount | grep -q '/proc/sys .*ro' && ! ls /proc/scsi/* 2>/dev/null; echo ok; sleep 1000"]
YAML
    ready pod/proc
    [ "$(k logs proc)" = ok ]
    # The value that it has; a test of the mode would tell root that it may.
    fails k exec proc -- sh -c 'cat /proc/sys/kernel/panic >/proc/sys/kernel/panic'
}
