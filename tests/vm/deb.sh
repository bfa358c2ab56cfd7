#!/bin/bash
# In the guest: the Debian package as a user has it, with systemd as process 1.
# Installed with apt, enabled, a pod by crictl, the daemon restarted below it, ended
# by the watchdog's signal; then the machine boots anew, and all is back.
#
# usage: deb.sh before    up to the reboot, which the caller does
#        deb.sh after     from there on, to the purge
#
# With build/kube there, a kubelet and a control plane are units beside it: a static
# pod and a Deployment have to come back too.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
export DEBIAN_FRONTEND=noninteractive CONTAINER_RUNTIME_ENDPOINT=unix:///run/podwright/podwright.sock
crictl() { "$root/build/bin/crictl" --config /dev/null -t 120s "$@"; }
say() { echo "deb.sh: $*"; }
fail() {
    say "FAILED: $*"
    journalctl -u podwright -u kubelet -n 40 --no-pager || true
    exit 1
}
# until_ok SECONDS WHAT COMMAND...
until_ok() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "$what"
        sleep 0.5
    done
}
work=/var/lib/podwright-vm
mkdir -p "$work"
cd "$work"

# run_pod NAME  a pod with one container on the CNI network; prints the container's id.
run_pod() {
    echo '{ "metadata": { "name": "'"$1"'", "namespace": "default", "uid": "'"$1"'" }, "log_directory": "/var/log/pods/'"$1"'", "linux": {} }' >pod.json
    echo '{ "metadata": { "name": "c" }, "image": { "image": "example.test/app:1" }, "log_path": "c.log", "linux": {} }' >container.json
    local pod container
    pod=$(crictl runp pod.json)
    container=$(crictl create "$pod" container.json pod.json)
    crictl start "$container" >/dev/null
    echo "$container"
}
running() { [ "$(crictl inspect "$1" | jq -r .status.state)" = CONTAINER_RUNNING ]; }

NODE_NAME=$(hostname) NODE_IP=10.99.0.1 PKI=/etc/podwright-vm/pki ETCD_DATA=/var/lib/etcd
export KUBECONFIG=$PKI/admin.conf PATH=$PATH:$root/build/kube
source "$root/tests/kubelet/control-plane.sh"

# unit NAME COMMAND...  a unit that is enabled and started
unit() {
    cat >"/etc/systemd/system/$1.service" <<END
[Unit]
After=node-address.service podwright.service
Wants=podwright.service
StartLimitIntervalSec=0
[Service]
ExecStart=${*:2}
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
END
    systemctl daemon-reload
    systemctl enable -q --now "$1"
}
component() { unit "$1" "$root/build/kube/$1" "${@:2}"; }

kubernetes() {
    [ -x "$root/build/kube/kubelet" ] || return 0
    say "a control plane and a kubelet as units"
    # The guest has no network: an address and a way for everything, which lead nowhere.
    cat >/etc/systemd/system/node-address.service <<END
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -ec 'ip link add node0 type dummy; ip addr add $NODE_IP/24 dev node0; ip link set node0 up; ip route add default dev node0'
[Install]
WantedBy=multi-user.target
END
    systemctl enable -q --now node-address
    servers
    until_ok 600 "the API server is not ready" kubectl get --raw /readyz
    controllers
    mkdir -p /etc/kubernetes/manifests /var/lib/kubelet
    cat >/var/lib/kubelet/config.yaml <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/podwright/podwright.sock
staticPodPath: /etc/kubernetes/manifests
cgroupDriver: systemd
failSwapOn: false
authentication: { x509: { clientCAFile: $PKI/ca.crt }, anonymous: { enabled: false } }
authorization: { mode: AlwaysAllow }
END
    podwright check -q || fail "podwright check, with a kubelet"
    cat >/etc/kubernetes/manifests/static.yaml <<END
apiVersion: v1
kind: Pod
metadata: { name: static, namespace: default }
spec:
  containers:
    - { name: c, image: "example.test/app:1", imagePullPolicy: Never }
END
    component kubelet --config /var/lib/kubelet/config.yaml --kubeconfig "$PKI/kubelet.conf" \
        --hostname-override "$NODE_NAME" --node-ip "$NODE_IP"
    until_ok 300 "the static pod does not run" static_runs
    until_ok 300 "there is no account for pods" kubectl get serviceaccount default
    kubectl create deployment app --image example.test/app:1 --replicas 2
    until_ok 600 "the Deployment is not up" deployment_is_up 0
}
static_runs() { [ -n "$(crictl ps -q --label "io.kubernetes.pod.name=static-$NODE_NAME")" ]; }
# deployment_is_up RESTARTS  as the API server and as the runtime tell it
deployment_is_up() {
    [ "$(crictl ps -q --label io.kubernetes.container.name=app | wc -l)" = 2 ] &&
        kubectl get pods -l app=app -o json |
        jq -e '[.items[].status.containerStatuses[]? | select(.ready and .restartCount >= '"$1"')] | length == 2'
}

case $1 in
before)
    say "apt-get install"
    apt-get -q -y install "$root"/build/dist/podwright_*.deb || fail "apt-get install"
    ! systemctl is-active -q podwright || fail "the installation started it"
    ! systemctl is-enabled -q podwright || fail "the installation enabled it"
    mkdir -p /etc/cni/net.d
    cp /usr/share/doc/podwright/examples/10-podwright.conflist /etc/cni/net.d/
    podwright check || fail "podwright check"
    say "systemctl enable --now"
    systemctl enable --now podwright || fail "it does not start"
    [ "$(systemctl show -p WatchdogUSec --value podwright)" != 0 ] || fail "no watchdog"
    ! systemd-analyze verify /lib/systemd/system/podwright.service 2>&1 | grep podwright || fail "systemd-analyze verify"
    "$root/tests/images/archive.sh" image.tar example.test/app:1
    podwright images load image.tar
    container=$(run_pod first)
    running "$container" || fail "the pod does not run"
    echo "$container" >container
    pid=$(crictl inspect "$container" | jq .info.pid)
    say "systemctl restart"
    systemctl restart podwright
    running "$container" && kill -0 "$pid" || fail "the restart ended the container"
    say "the watchdog's signal"
    restarts=$(systemctl show -p NRestarts --value podwright)
    systemctl kill --signal=ABRT --kill-whom=main podwright
    more() { [ "$(systemctl show -p NRestarts --value podwright)" -gt "$restarts" ] && systemctl is-active -q podwright; }
    until_ok 120 "it was not started anew" more
    until_ok 60 "it does not answer" crictl version
    running "$container" && kill -0 "$pid" || fail "the abort ended the container"
    kubernetes
    ls -d /run/netns/podwright-* >netns
    ;;
after)
    # The tests' own target is booted; a machine of a user's boots this one.
    systemctl start --no-block multi-user.target
    until_ok 300 "podwright is not back" systemctl is-active -q podwright
    until_ok 60 "it does not answer" crictl version
    podwright check -q || fail "podwright check"
    podwright images ls | grep -q example.test/app:1 || fail "the image is gone"
    if [ -x "$root/build/kube/kubelet" ]; then
        # It removes the pod that it knows nothing of.
        say "the kubelet's pods are back"
        until_ok 600 "the static pod is not back" static_runs
        until_ok 600 "the Deployment is not back" deployment_is_up 1
        kubectl get nodes,pods -o wide
        systemctl disable --now kubelet
    else
        ! running "$(cat container)" || fail "a container of the last boot counts as running"
        crictl rmp -f "$(crictl pods -q --name first)" >/dev/null || fail "rmp"
    fi
    say "new pods run"
    container=$(run_pod second)
    running "$container" || fail "the new pod does not run"
    say "apt-get purge"
    apt-get -q -y purge podwright || fail "purge"
    left=$(ls -d /run/podwright /var/lib/podwright /etc/podwright /run/netns/podwright-* 2>/dev/null || true)
    left+=$(grep podwright/ /proc/self/mountinfo || true)
    left+=$(pgrep -a podwright || true)
    [ -z "$left" ] || fail "left: $left"
    ;;
esac
say "$1: passed"
