#!/bin/bash
# Installs the Debian packages that building, running and testing need, only
# those that are missing, without questions.
#
# usage: scripts/deps.sh [further packages...]
set -euo pipefail

packages=(
    # what the daemon drives
    runc crun containernetworking-plugins iptables conntrack
    # what the tests and `make run` drive
    docker-registry skopeo containerd busybox-static jq iproute2 util-linux procps curl e2fsprogs xfsprogs faketime
    # what builds the programs in the test images
    gcc make libc6-dev dpkg-dev ca-certificates
)
packages+=("$@")

missing=()
for package in "${packages[@]}"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
        missing+=("$package")
    fi
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing: ${missing[*]}"
if [ "$(id -u)" != 0 ]; then
    echo "run this as root, or: apt-get install ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
# These packages start services of their own (the registry's on all interfaces);
# tests start theirs, on loopback. A service that was there before is left alone.
for service in docker-registry containerd; do
    if [[ " ${missing[*]} " == *" $service "* ]] && [ -d /run/systemd/system ]; then
        systemctl disable --now --quiet "$service" || true
    fi
done
