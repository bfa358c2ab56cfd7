#!/bin/bash
# Installs the Debian packages that building, running and testing need, only
# those that are missing, without questions.
set -euo pipefail

packages=(
    # what the daemon drives
    runc crun containernetworking-plugins iptables conntrack
    # what the tests and `make run` drive
    docker-registry busybox-static jq iproute2 util-linux procps curl
    # what builds the programs in the test images
    gcc make libc6-dev dpkg-dev ca-certificates
)

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
# The registry's package starts a service of its own, on all interfaces; tests
# start theirs, on loopback.
if [[ " ${missing[*]} " == *" docker-registry "* ]] && [ -d /run/systemd/system ]; then
    systemctl disable --now --quiet docker-registry || true
fi
