#!/bin/bash
# The Debian package and the tarball as a user meets them: installed, started, a
# pod run, replaced below it, removed, purged; and nothing left. All of it happens
# in a copy of this machine's root (an overlay) with mounts, processes and network
# of its own, so that the machine itself is not touched.
#
# usage: tests/deploy/package.sh DEB [TARBALL]
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
say() { echo "package.sh: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

case ${1:-} in
outside | inside) ;;
*)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp "${1:?usage: package.sh DEB [TARBALL]}" "$work/podwright.deb"
    [ -z "${2:-}" ] || cp "$2" "$work/podwright.tar.gz"
    mkdir "$work/node"
    unshare --mount --net --pid --fork --kill-child --propagation private bash "$0" outside "$work"
    exit
    ;;
esac

if [ "$1" = outside ]; then
    work=$2
    mount -t tmpfs -o size=2g none "$work/node"
    node=$work/node/root
    mkdir "$work/node/"{upper,work,root}
    mount -t overlay -o "lowerdir=/,upperdir=$work/node/upper,workdir=$work/node/work" none "$node"
    mount -t proc proc "$node/proc"
    mount --rbind /sys "$node/sys"
    mount --rbind /dev "$node/dev"
    mount -t tmpfs none "$node/run"
    mount -t tmpfs none "$node/tmp"
    # Overlayfs takes no overlay as its upper directory: a disk of its own for images, as many nodes have.
    mkdir -p "$node/var/lib/podwright"
    mount -t tmpfs none "$node/var/lib/podwright"
    cp "$work"/podwright.* "$node/tmp/"
    exec chroot "$node" bash "$root/tests/deploy/package.sh" inside
fi

export DEBIAN_FRONTEND=noninteractive CONTAINER_RUNTIME_ENDPOINT=unix:///run/podwright/podwright.sock
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
crictl() { "$root/build/bin/crictl" --config /dev/null "$@"; }
ip link set lo up
cd /tmp
daemon=''

# start  the daemon as its unit does; systemd is not here.
start() {
    local unit=$1 command
    command=$(sed -n 's/^ExecStart=//p' "$unit")
    $command >>/tmp/daemon.log 2>&1 &
    daemon=$!
    for _ in $(seq 1 600); do
        ! crictl version >/dev/null 2>&1 || return 0
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.1
    done
    tail -20 /tmp/daemon.log >&2
    fail "the daemon does not answer"
}
stop() {
    kill -TERM "$daemon"
    wait "$daemon" || true
}

# pod_runs  a pod with one container; sets pid to the container's process.
pod_runs() {
    echo '{ "metadata": { "name": "p", "namespace": "default", "uid": "1" }, "log_directory": "/tmp/logs", "linux": {} }' >pod.json
    echo '{ "metadata": { "name": "c" }, "image": { "image": "example.test/app:1" }, "log_path": "c.log", "linux": {} }' >container.json
    podwright images load image.tar >/dev/null
    local pod container
    pod=$(crictl runp pod.json)
    container=$(crictl create "$pod" container.json pod.json)
    crictl start "$container" >/dev/null
    pid=$(crictl inspect "$container" | jq .info.pid)
    [ "$pid" -gt 1 ] && kill -0 "$pid" || fail "no process of the container: $pid"
}

left() {
    # The CNI configuration is the user's, the addresses are the plugin's.
    # What lies beside the checkout and in the home is beneath the copy too; logs of apt and dpkg are the machine's.
    find / -xdev -name '*podwright*' -not -path "${root%/*}/*" -not -path "${HOME:-/root}/*" -not -path '/tmp/*' -not -path '/proc/*' -not -path '/sys/*' \
        -not -path /var/lib/podwright -not -path /var/lib/cni/networks/podwright -not -path /etc/cni/net.d/10-podwright.conflist 2>/dev/null || true
    find /run /var/lib/podwright -mindepth 1 -name '*podwright*' 2>/dev/null || true
    find /var/lib/podwright -mindepth 1 -maxdepth 1 || true
    grep -o '/run/podwright[^ ]*\|/run/netns/podwright[^ ]*' /proc/self/mountinfo || true
    pgrep -a podwright || true
}

say "the Debian package"
"$root/tests/images/archive.sh" image.tar example.test/app:1
apt-get -qq -y install /tmp/podwright.deb >apt.log 2>&1 || { cat apt.log; fail "apt-get install"; }
grep -q 'installed, not started' apt.log || fail "no word on what is next: $(cat apt.log)"
unit=$(dpkg -L podwright | grep '/podwright.service$')
[ ! -e /etc/systemd/system/multi-user.target.wants/podwright.service ] || fail "it is enabled"
diff <(podwright config --config /etc/podwright/config.toml) <(podwright config --default) || fail "not the defaults"
dpkg-query -W -f '${Conffiles}\n' podwright | grep -q /etc/podwright/config.toml || fail "no conffile"
mkdir -p /etc/cni/net.d
rm -f /etc/cni/net.d/*
podwright check -q && fail "a node without a CNI configuration has no failure"
cp /usr/share/doc/podwright/examples/10-podwright.conflist /etc/cni/net.d/
podwright check -q || fail "the node has a failure"
start "$unit"
pod_runs
say "the pod runs; the package is replaced"
apt-get -qq -y install --reinstall /tmp/podwright.deb >apt.log 2>&1 || { cat apt.log; fail "apt-get install --reinstall"; }
stop
start "$unit"
kill -0 "$pid" || fail "the container is gone"
[ "$(crictl ps -q | wc -l)" = 1 ] || fail "the container is not listed"
echo '# mine' >>/etc/podwright/config.toml
stop
apt-get -qq -y remove podwright >apt.log 2>&1 || { cat apt.log; fail "apt-get remove"; }
grep -q '1 pods go on' apt.log || fail "no word on the pod: $(cat apt.log)"
kill -0 "$pid" || fail "removal ended the container"
grep -q mine /etc/podwright/config.toml || fail "removal took the configuration"
[ ! -e /usr/bin/podwright ] || fail "the program is still there"
apt-get -qq -y purge podwright >apt.log 2>&1 || { cat apt.log; fail "apt-get purge"; }
for _ in $(seq 1 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
! kill -0 "$pid" 2>/dev/null || fail "the container lives on after the purge"
[ -z "$(left)" ] || fail "left: $(left)"
say "purged; nothing is left"

[ -e podwright.tar.gz ] || { say "passed, without a tarball"; exit 0; }
say "the tarball"
# The shell remembers where the package had it.
hash -r
tar -x -f podwright.tar.gz
cd podwright-*/
make -s install
cd /tmp
start /etc/systemd/system/podwright.service
pod_runs
stop
make -s -C /tmp/podwright-*/ purge
for _ in $(seq 1 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
! kill -0 "$pid" 2>/dev/null || fail "the container lives on after the purge"
[ -z "$(left)" ] || fail "left: $(left)"
say "passed"
