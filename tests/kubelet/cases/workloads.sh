# Pods and what makes them. Sourced by cluster.sh; each case runs in a namespace of its own.

workloads=(deployment init-containers sidecars probes probe-timeout lifecycle-hooks termination-message job
    bad-images bad-commands runtime-class stop-signal names shared-pids host-namespaces stateful-set deadline
    mirror-pod downward-api restart-rules)

deployment_case() {
    k create deployment web --image "$REPO/web:latest" --replicas 3 >/dev/null
    k rollout status deployment/web --timeout 60s
    local before after
    before=$(k get pods -l app=web -o name | sort)
    k set env deployment/web CHANGED=yes >/dev/null
    k rollout status deployment/web --timeout 60s
    k wait --for=delete $before --timeout 60s >/dev/null
    after=$(k get pods -l app=web -o jsonpath='{.items[*].status.podIP}')
    [ "$(wc -w <<<"$after")" = 3 ]
    for address in $after; do
        grep -q Welcome <<<"$(curl -sS --fail --max-time 5 "http://$address/")"
    done
    k scale deployment/web --replicas 0 >/dev/null
    k wait --for=delete pods -l app=web --timeout 60s >/dev/null
}

init_containers_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: init }
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{ name: work, emptyDir: {} }]
  initContainers:
  - name: first
    image: $REPO/busybox:latest
    command: [sh, -c, "[ -e /work/again ] || { touch /work/again; exit 1; }; echo first >>/work/order"]
    volumeMounts: [{ name: work, mountPath: /work }]
  - name: second
    image: $REPO/busybox:latest
    command: [sh, -c, "sleep 1; echo second >>/work/order"]
    volumeMounts: [{ name: work, mountPath: /work }]
  containers:
  - name: main
    image: $REPO/busybox:latest
    command: [sh, -c, "cat /work/order; sleep 1000"]
    volumeMounts: [{ name: work, mountPath: /work }]
YAML
    ready pod/init
    [ "$(k logs init -c main)" = $'first\nsecond' ]
    pod_is init '.status.initContainerStatuses[0].restartCount' 1
    pod_is init '.status.initContainerStatuses | map(.state.terminated.reason) | unique | join(",")' Completed
}

sidecars_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: side }
spec:
  restartPolicy: Never
  volumes: [{ name: work, emptyDir: {} }]
  initContainers:
  - name: sidecar
    image: $REPO/busybox:latest
    restartPolicy: Always
    command: [sh, -c, "trap 'echo bye; exit 0' TERM; sleep 2; touch /work/up; while :; do sleep 0.1; done"]
    startupProbe: { exec: { command: [test, -e, /work/up] }, periodSeconds: 1 }
    volumeMounts: [{ name: work, mountPath: /work }]
  - name: after
    image: $REPO/busybox:latest
    command: [test, -e, /work/up]
    volumeMounts: [{ name: work, mountPath: /work }]
  containers:
  - name: main
    image: $REPO/busybox:latest
    command: [sh, -c, "sleep 1; test -e /work/up"]
    volumeMounts: [{ name: work, mountPath: /work }]
YAML
    phase Succeeded side
    until_true 30 "the sidecar has ended" pod_is side '.status.initContainerStatuses[0].state.terminated.exitCode' 0
    grep -q bye <<<"$(k logs side -c sidecar)"
    pod_is side '.status.initContainerStatuses[0].started' false
}

probes_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, labels: { app: web } }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: $REPO/web:latest
    ports: [{ name: http, containerPort: 80 }]
    startupProbe: { tcpSocket: { port: http }, periodSeconds: 1 }
    readinessProbe: { exec: { command: [test, -e, /tmp/ready] }, periodSeconds: 1 }
    livenessProbe: { httpGet: { port: http, path: / }, periodSeconds: 1, failureThreshold: 2 }
YAML
    until_true 60 "it has started" pod_is web '.status.containerStatuses[0].started' true
    pod_is web '.status.containerStatuses[0].ready' false
    k exec web -- touch /tmp/ready
    ready pod/web
    until_true 30 "it is an endpoint" endpoint_ready true
    k exec web -- rm /tmp/ready
    until_true 30 "it is no endpoint" endpoint_ready false
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: silent }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: $REPO/busybox:latest
    command: [sleep, "1000"]
    livenessProbe: { httpGet: { port: 80 }, periodSeconds: 1, failureThreshold: 2 }
YAML
    until_true 60 "what does not answer is restarted" pod_is silent '.status.containerStatuses[0].restartCount >= 1' true
}

endpoint_ready() {
    [ "$(k get endpointslices -l kubernetes.io/service-name=web -o json | jq -r '.items[0].endpoints[0].conditions.ready')" = "$1" ]
}

probe_timeout_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: slow }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: slow
    image: $REPO/busybox:latest
    command: [sleep, "1000"]
    livenessProbe: { exec: { command: [sleep, "20"] }, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 2 }
YAML
    until_true 60 "it was restarted" pod_is slow '.status.containerStatuses[0].restartCount >= 1' true
    k get events -o json | jq -e '.items | any(.reason == "Unhealthy" and (.message | test("timed out|timeout")))'
}

lifecycle_hooks_case() {
    local dir=$SCRATCH/hooks
    mkdir -p "$dir"
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: hooks }
spec:
  terminationGracePeriodSeconds: 10
  volumes: [{ name: out, hostPath: { path: $dir, type: Directory } }]
  containers:
  - name: web
    image: $REPO/web:latest
    volumeMounts: [{ name: out, mountPath: /out }]
    lifecycle:
      postStart: { exec: { command: [sh, -c, "sleep 1; echo post >>/out/order"] } }
      preStop: { exec: { command: [sh, -c, "echo pre >>/out/order; sleep 1; echo stopped >>/out/order"] } }
  - name: http
    image: $REPO/busybox:latest
    command: [sleep, "1000"]
    lifecycle:
      preStop: { httpGet: { port: 80, path: /pre-stop } }
YAML
    ready pod/hooks
    [ "$(cat "$dir/order")" = post ]
    # A hook that fails kills its container.
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: fails }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: shell
    image: $REPO/busybox:latest
    command: [sleep, "1000"]
    lifecycle: { postStart: { exec: { command: [sh, -c, "echo why; exit 7"] } } }
YAML
    until_true 60 "the event of the hook" has_event FailedPostStartHook
    k delete pod hooks >/dev/null
    [ "$(cat "$dir/order")" = $'post\npre\nstopped' ]
}

has_event() {
    k get events -o json | jq -e --arg reason "$1" --arg text "${2:-}" \
        '.items | any(.reason == $reason and (.message | test($text)))' >/dev/null
}

termination_message_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: ends }
spec:
  restartPolicy: Never
  containers:
  - name: file
    image: $REPO/busybox:latest
    command: [sh, -c, "echo -n from the file >/dev/termination-log; exit 4"]
  - name: logs
    image: $REPO/busybox:latest
    terminationMessagePolicy: FallbackToLogsOnError
    command: [sh, -c, "echo from the log; exit 5"]
  - name: elsewhere
    image: $REPO/busybox:latest
    terminationMessagePath: /run/why/not
    command: [sh, -c, "echo -n other path >/run/why/not"]
YAML
    phase Failed ends
    pod_is ends '[.status.containerStatuses[] | .state.terminated | "\(.exitCode) \(.reason) \(.message // "" | rtrimstr("\n"))"] | sort | join("|")' \
        "0 Completed other path|4 Error from the file|5 Error from the log"
}

job_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: batch/v1
kind: Job
metadata: { name: job }
spec:
  completions: 6
  parallelism: 3
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{ name: main, image: "$REPO/busybox:latest", command: [sh, -c, "echo done"] }]
YAML
    k wait --for=condition=Complete job/job --timeout=90s >/dev/null
    [ "$(k logs -l job-name=job --tail=-1 | sort | uniq -c | xargs)" = "6 done" ]
}

bad_images_case() {
    k run missing --image "$REPO/missing:1" --restart Never >/dev/null
    k run policy --image "$REPO/busybox:nothing" --image-pull-policy Never >/dev/null
    # kubectl itself refuses such a name.
    k run name --image x --overrides '{"spec":{"containers":[{"name":"name","image":"Not_A_Name:1:2"}]}}' >/dev/null
    until_true 60 "a pull fails" waits_for missing 'ErrImagePull|ImagePullBackOff'
    has_event Failed missing:1
    until_true 60 "no pull" waits_for policy ErrImageNeverPull
    until_true 60 "a bad name" waits_for name InvalidImageName
}

waits_for() {
    [[ "$(pod_get "$1" '.status.containerStatuses[0].state.waiting.reason')" =~ ^($2)$ ]]
}

bad_commands_case() {
    k run nothing --image "$REPO/busybox:latest" --restart Never --command -- /does/not/exist >/dev/null
    k run directory --image "$REPO/busybox:latest" --restart Never --command -- /etc >/dev/null
    k run signal --image "$REPO/busybox:latest" --restart Never --command -- sh -c 'kill -ABRT $$' >/dev/null
    phase Failed nothing
    phase Failed directory
    phase Failed signal
    pod_is nothing '.status.containerStatuses[0].state.terminated | "\(.exitCode) \(.reason)"' "128 StartError"
    grep -q 'no such file' <<<"$(pod_get nothing '.status.containerStatuses[0].state.terminated.message')"
    pod_is directory '.status.containerStatuses[0].state.terminated.reason' StartError
    # The shell is process 1 of its namespace, which a signal of its own does not end.
    pod_get signal '.status.containerStatuses[0].state.terminated.exitCode'
}

runtime_class_case() {
    kubectl apply -f - <<YAML >/dev/null
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: { name: known }
handler: runc
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: { name: unknown }
handler: nobody
YAML
    shell_pod known '  runtimeClassName: known'
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: unknown }
spec: { runtimeClassName: unknown, containers: [{ name: c, image: "$REPO/busybox:latest" }] }
YAML
    until_true 60 "the event names the handler" has_event FailedCreatePodSandBox nobody
    kubectl delete runtimeclass known unknown >/dev/null
}

stop_signal_case() {
    # Grace: a process that answers SIGTERM ends with its own code, one that does not with SIGKILL's.
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: polite, finalizers: [podwright.test/look] }
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: polite
    image: $REPO/busybox:latest
    command: [sh, -c, "trap 'echo asked; exit 6' TERM; while :; do sleep 0.1; done"]
  - name: deaf
    image: $REPO/busybox:latest
    command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"]
YAML
    ready pod/polite
    k delete pod polite --wait=false >/dev/null
    until_true 30 "both ended" pod_is polite '[.status.containerStatuses[].state.terminated.exitCode] | sort | map(tostring) | join(",")' 6,137
    k patch pod polite --type merge -p '{"metadata":{"finalizers":null}}' >/dev/null
    k wait --for=delete pod/polite --timeout 30s >/dev/null
}

names_case() {
    shell_pod names "  hostname: host
  subdomain: sub
  setHostnameAsFQDN: true
  hostAliases: [{ ip: 10.1.2.3, hostnames: [alias.example] }]
  dnsPolicy: None
  dnsConfig: { nameservers: [10.9.8.7], searches: [a.example, b.example], options: [{ name: ndots, value: '3' }] }"
    [ "$(k exec names -- hostname)" = "host.sub.$NS.svc.cluster.local" ]
    grep -q '10.1.2.3.*alias.example' <<<"$(k exec names -- cat /etc/hosts)"
    [ "$(k exec names -- cat /etc/resolv.conf | sort)" = $'nameserver 10.9.8.7\noptions ndots:3\nsearch a.example b.example' ]
}

shared_pids_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: shared }
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  containers:
  - { name: web, image: "$REPO/web:latest" }
  - { name: shell, image: "$REPO/busybox:latest", command: [sleep, "1000"], securityContext: { capabilities: { add: [SYS_PTRACE] } } }
YAML
    ready pod/shared
    grep -q Welcome <<<"$(k exec shared -c shell -- sh -c 'pgrep -f nginx >/dev/null && cat /proc/$(pgrep -f nginx | head -1)/root/usr/share/nginx/html/index.html')"
    k exec shared -c shell -- sh -c 'kill $(pgrep nginx)'
    until_true 30 "the server was restarted" pod_is shared '.status.containerStatuses[] | select(.name == "web") | .restartCount' 1
    ready pod/shared
}

host_namespaces_case() {
    shell_pod host '  hostNetwork: true
  hostPID: true
  hostIPC: true'
    pod_is host .status.podIP "$NODE_IP"
    pod_is host .status.hostIP "$NODE_IP"
    [ "$(k exec host -- hostname)" = "$NODE_NAME" ]
    grep -q node0 <<<"$(k exec host -- ip -o link)"
    k exec host -- pgrep -f kube-apiserver >/dev/null
}

stateful_set_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: set }
spec:
  serviceName: set
  replicas: 2
  selector: { matchLabels: { app: set } }
  template:
    metadata: { labels: { app: set } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: web, image: "$REPO/web:latest", readinessProbe: { httpGet: { port: 80 }, periodSeconds: 1 } }]
YAML
    k rollout status statefulset/set --timeout 60s
    local uid
    uid=$(pod_get set-0 .metadata.uid)
    k delete pod set-0 >/dev/null
    until_true 30 "it is another pod" sh -c "[ \"\$(kubectl -n $NS get pod set-0 -o jsonpath={.metadata.uid})\" != $uid ]"
    ready pod/set-0
    [ "$(k exec set-0 -- hostname)" = set-0 ]
}

deadline_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: late }
spec:
  activeDeadlineSeconds: 3
  terminationGracePeriodSeconds: 1
  containers: [{ name: c, image: "$REPO/busybox:latest", command: [sleep, "1000"] }]
YAML
    phase Failed late
    pod_is late .status.reason DeadlineExceeded
    until_true 30 "its container ended" pod_is late '.status.containerStatuses[0].state.terminated.exitCode' 137
}

mirror_pod_case() {
    cat >/var/lib/kubelet/manifests/mirror.yaml <<YAML
apiVersion: v1
kind: Pod
metadata: { name: mirror, namespace: $NS }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: web, image: "$REPO/web:latest" }]
YAML
    until_true 60 "the API server has it" k get pod "mirror-$NODE_NAME" >/dev/null 2>&1
    ready "pod/mirror-$NODE_NAME"
    rm /var/lib/kubelet/manifests/mirror.yaml
    k wait --for=delete "pod/mirror-$NODE_NAME" --timeout 60s >/dev/null
}

downward_api_case() {
    shell_pod down '' '    resources: { requests: { cpu: 20m, memory: 16Mi }, limits: { cpu: 500m, memory: 48Mi } }
    env:
    - { name: NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    - { name: ADDRESS, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    - { name: NODE, valueFrom: { fieldRef: { fieldPath: spec.nodeName } } }
    - { name: MEMORY, valueFrom: { resourceFieldRef: { resource: limits.memory } } }
    - { name: COMPOSED, value: "$(NAME)-x" }'
    [ "$(k exec down -- sh -c 'echo $NAME $ADDRESS $NODE $MEMORY $COMPOSED $HOSTNAME')" = \
        "down $(pod_get down .status.podIP) $NODE_NAME $((48 << 20)) down-x down" ]
}

restart_rules_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: rules }
spec:
  restartPolicy: Never
  volumes: [{ name: work, emptyDir: {} }]
  containers:
  - name: c
    image: $REPO/busybox:latest
    restartPolicy: Never
    restartPolicyRules: [{ action: Restart, exitCodes: { operator: In, values: [42] } }]
    command: [sh, -c, "[ -e /work/again ] && exit 0; touch /work/again; exit 42"]
    volumeMounts: [{ name: work, mountPath: /work }]
YAML
    phase Succeeded rules
    pod_is rules '.status.containerStatuses[0].restartCount' 1
}
