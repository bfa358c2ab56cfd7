# A node moves from containerd to podwright, and back, as docs/migration.md says. Sourced.

migration() {
    control_plane
    case_run migration in_namespace migration
}

# move FROM TO  everything between the drain and the node that takes pods again
move() {
    local from=$1 to=$2
    kubectl drain "$NODE_NAME" --timeout 60s --ignore-daemonsets --delete-emptydir-data --force
    kubelet_stop
    "$bin/crictl" --config /dev/null -r "$from" rmp -f -a
    [ -z "$("$bin/crictl" --config /dev/null -r "$from" pods -q)" ]
    ENDPOINT=$to
    if [ "$to" = "$OURS" ]; then
        end_process TERM /run/peer/containerd.pid
        # The store of a containerd that has ended.
        podwright images import-from --config "$CONFIG" containerd --root /run/peer/root
        podwright images --config "$CONFIG" ls | grep -F "$REPO/web:latest"
    else
        containerd --config /run/peer/config.toml >>/run/peer/containerd.log 2>&1 &
        echo $! >/run/peer/containerd.pid
        until_true 60 "containerd is back" sh -c "crictl --config /dev/null -r $to version >/dev/null 2>&1"
    fi
    cluster_kubelet_config
    kubelet_start --kubeconfig "$PKI/kubelet.conf"
    node_ready
    kubectl uncordon "$NODE_NAME"
}

runtime_is() { kubectl get node "$NODE_NAME" -o jsonpath='{.status.nodeInfo.containerRuntimeVersion}' | grep "^$1://"; }

migration_case() {
    k create deployment web --image "$REPO/web:latest" --replicas 2 >/dev/null
    k patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"web","imagePullPolicy":"IfNotPresent"}]}}}}' >/dev/null
    k rollout status deployment/web --timeout 90s
    runtime_is containerd
    local since
    # Events tell whole seconds.
    since=$(date -u -d '+1 second' +%FT%TZ)
    move "$THEIRS" "$OURS"
    runtime_is podwright
    k rollout status deployment/web --timeout 90s
    k exec deployment/web -- true
    # Nothing was pulled twice.
    k get events -o json | jq -e --arg since "$since" \
        '[.items[] | select(.reason == "Pulled" and .lastTimestamp > $since) | .message]
         | length > 0 and all(contains("already present"))' >/dev/null
    move "$OURS" "$THEIRS"
    runtime_is containerd
    k rollout status deployment/web --timeout 90s
    k exec deployment/web -- true
}
