# A control plane of one node on loopback, and the cases on it. Sourced.

source "$here/control-plane.sh"

component() {
    local name=$1
    shift
    "$name" "$@" >"$OUT/$name.log" 2>&1 &
}

control_plane() {
    certificates
    export KUBECONFIG=$PKI/admin.conf
    servers
    until_true 120 "the API server is ready" kubectl get --raw /readyz >/dev/null 2>&1
    controllers
    cluster_kubelet_config
    kubelet_start --kubeconfig "$PKI/kubelet.conf"
    until_true 60 "the node is registered" kubectl get node "$NODE_NAME" >/dev/null 2>&1
    kubectl wait --for=condition=Ready "node/$NODE_NAME" --timeout=60s >/dev/null
    until_true 60 "accounts are made" kubectl get serviceaccount default >/dev/null 2>&1
}

cluster_kubelet_config() {
    kubelet_config "authentication: { x509: { clientCAFile: $PKI/ca.crt }, anonymous: { enabled: false } }
authorization: { mode: AlwaysAllow }
podPidsLimit: 200
${1:-}"
}

# Each case has a namespace of its own name, and k for it.
in_namespace() {
    NS=$1
    trap namespace_end EXIT
    kubectl create namespace "$NS" >/dev/null
    until_true 30 "the namespace has its account" k get serviceaccount default >/dev/null 2>&1
    "${NS//-/_}_case"
}

namespace_end() {
    local code=$?
    set +ex
    if [ $code != 0 ] && [ $code != 77 ]; then
        { k get pods -o yaml; k get events --sort-by lastTimestamp; } >"$OUT/$NS.state" 2>&1
        # Left for whoever looks.
        [ -z "${SHELL_AT:-}" ] || exit $code
    fi
    kubectl delete namespace "$NS" --wait=false >/dev/null 2>&1
    k delete pods --all --force --grace-period=1 --wait=false >/dev/null 2>&1
    exit $code
}

k() { kubectl -n "$NS" "$@"; }

pod_get() { k get pod "$1" -o json | jq -r "$2"; }

pod_is() { [ "$(pod_get "$1" "$2")" = "$3" ]; }

ready() { k wait --for=condition=Ready --timeout="${TIMEOUT:-60s}" "$@" >/dev/null; }

phase() { k wait --for=jsonpath='{.status.phase}'="$1" --timeout=60s "pod/$2" >/dev/null; }

# shell_pod NAME [MORE]  one container `shell` that sleeps; MORE are further keys of the pod's spec
shell_pod() {
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: $1, labels: { app: $1 } }
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: shell
    image: $REPO/busybox:latest
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.2; done"]
${3:-}
${2:-}
YAML
    ready "pod/$1"
}

source "$here/cases/workloads.sh"
source "$here/cases/volumes.sh"
source "$here/cases/streams.sh"
source "$here/cases/resources.sh"
source "$here/cases/security.sh"
source "$here/cases/disruption.sh"

# cluster [CASE...]
cluster() {
    local all name
    control_plane
    all=("${workloads[@]}" "${volumes[@]}" "${streams[@]}" "${resources[@]}" "${security[@]}")
    for name in "${all[@]}"; do
        ! wanted "$name" "$@" || case_start "$name" in_namespace "$name"
    done
    case_wait
    # One at a time: they stop and kill what all others need.
    for name in "${disruptions[@]}"; do
        ! wanted "$name" "$@" || case_run "$name" in_namespace "$name"
    done
    if [ $# = 0 ]; then
        case_run nothing-left nothing_left_case
    fi
}

wanted() {
    local name=$1 pattern
    shift
    [ $# != 0 ] || return 0
    for pattern in "$@"; do
        [[ "$name" != $pattern ]] || return 0
    done
    return 1
}
