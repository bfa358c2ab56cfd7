# What kubectl does with a running pod. Sourced by cluster.sh.

streams=(logs log-rotation exec copy attach port-forward debug-container debug-node)

logs_case() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: logs }
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: $REPO/busybox:latest
    command: [sh, -c, "for i in 1 2 3; do echo out \$i; done; echo err >&2; sleep 2; echo late; sleep 1; exit 9"]
YAML
    ready pod/logs
    # -f ends when the container ends.
    timeout 30 kubectl -n "$NS" logs -f logs | sort >"$SCRATCH/followed"
    [ "$(cat "$SCRATCH/followed")" = $'err\nlate\nout 1\nout 2\nout 3' ]
    until_true 30 "it was restarted" pod_is logs '.status.containerStatuses[0].restartCount >= 1' true
    grep -q late <<<"$(k logs logs --previous)"
    [ "$(k logs logs --previous --tail 1)" = late ]
    grep -q '^20..-..-..T.*Z out 1' <<<"$(k logs logs --previous --timestamps)"
    [ -z "$(k logs logs --previous --since-time 2999-01-01T00:00:00Z)" ]
}

log_rotation_case() {
    k run talks --image "$REPO/busybox:latest" --restart Never --command -- \
        sh -c 'i=0; while [ $i -lt 6000 ]; do echo "line $i of some more than forty characters in all"; i=$((i+1)); [ $((i % 200)) != 0 ] || sleep 0.5; done; sleep 1000' >/dev/null
    ready pod/talks
    timeout 90 kubectl -n "$NS" logs -f talks | head -6000 >"$SCRATCH/rotated" || true
    # Every line, once, in order, over rotations.
    [ "$(wc -l <"$SCRATCH/rotated")" = 6000 ]
    awk '$2 != NR - 1 { exit 1 }' "$SCRATCH/rotated"
    [ "$(find /var/log/pods/"${NS}"_talks_*/ -type f | wc -l)" = 3 ]
    grep -q . <<<"$(find /var/log/pods/"${NS}"_talks_*/ -name '*.gz')"
}

exec_case() {
    shell_pod exec
    [ "$(k exec exec -- sh -c 'echo out; echo err >&2' 2>/dev/null)" = out ]
    [ "$(printf 'a\nb' | k exec -i exec -- cat)" = $'a\nb' ]
    local code=0
    k exec exec -- sh -c 'exit 5' || code=$?
    [ $code = 5 ]
    code=0
    k exec exec -- /does/not/exist || code=$?
    [ $code != 0 ]
    [[ "$(script -qec "kubectl -n $NS exec -it exec -- tty" /dev/null </dev/null)" == /dev/pts/* ]]
    head -c 8388608 /dev/urandom >"$SCRATCH/random"
    k exec -i exec -- cat <"$SCRATCH/random" | cmp - "$SCRATCH/random"
}

copy_case() {
    shell_pod copy
    mkdir -p "$SCRATCH/tree/below"
    head -c 5000000 /dev/urandom >"$SCRATCH/tree/big"
    echo small >"$SCRATCH/tree/below/small"
    k cp "$SCRATCH/tree" copy:/tmp/tree
    k cp copy:/tmp/tree "$SCRATCH/back" >/dev/null
    diff -r "$SCRATCH/tree" "$SCRATCH/back"
}

attach_case() {
    k run cat --image "$REPO/busybox:latest" --stdin --attach=false --command -- sh -c 'while read -r line; do echo "got $line"; done; echo over; sleep 1000' >/dev/null
    ready pod/cat
    { echo one; sleep 1; echo two; sleep 1; } | timeout 30 kubectl -n "$NS" attach -i cat >"$SCRATCH/attached" || true
    grep -q 'got one' "$SCRATCH/attached"
    grep -q 'got two' "$SCRATCH/attached"
    grep -q 'got two' <<<"$(k logs cat)"
    # run -i: attaches to a pod that begins with its input, and ends with its code.
    [ "$(echo through | timeout 60 kubectl -n "$NS" run once --image "$REPO/busybox:latest" -i --rm -q --restart Never --command -- cat)" = through ]
}

port_forward_case() {
    k run web --image "$REPO/web:latest" >/dev/null
    ready pod/web
    kubectl -n "$NS" port-forward pod/web 8123:80 >"$SCRATCH/forward.log" 2>&1 &
    local forward=$!
    until_true 20 "it listens" grep -q 'Forwarding from 127.0.0.1' "$SCRATCH/forward.log"
    for _ in 1 2 3; do
        grep -q Welcome <<<"$(curl -sS --fail --max-time 5 http://127.0.0.1:8123/)"
    done
    kill $forward
    wait $forward || true
}

debug_container_case() {
    k run web --image "$REPO/web:latest" >/dev/null
    ready pod/web
    k debug web --image "$REPO/busybox:latest" --target web -c looks -- sh -c 'pgrep -f nginx && grep -q Welcome /proc/1/root/usr/share/nginx/html/index.html && sleep 1000' >/dev/null
    until_true 60 "it runs" pod_is web '.status.ephemeralContainerStatuses[0].state.running != null' true
    until_true 20 "it sees the target's processes" sh -c "kubectl -n $NS logs web -c looks | grep -q '^1\$'"
    sleep 1
    pod_is web '.status.ephemeralContainerStatuses[0].state.running != null' true
    pod_is web '.status.containerStatuses[0].restartCount' 0
}

debug_node_case() {
    k debug "node/$NODE_NAME" --image "$REPO/busybox:latest" --profile sysadmin -- sh -c 'chroot /host cat /proc/1/cmdline | tr "\\0" " "; ls /host/etc/debian_version' >/dev/null
    local pod
    pod=$(k get pods -o name | head -1)
    k wait --for=jsonpath='{.status.phase}'=Succeeded --timeout=60s "$pod" >/dev/null
    grep -q machine.sh <<<"$(k logs "$pod")"
    grep -q debian_version <<<"$(k logs "$pod")"
}
