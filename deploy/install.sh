#!/bin/sh
# Installs podwright from the directory that holds this script's, or removes it.
#
# usage: install.sh install        programs, unit, configuration (an existing one stays)
#        install.sh uninstall      programs and unit; pods, images and configuration stay
#        install.sh purge          all of it; pods that still run are ended
#
# PREFIX=/usr/local  where programs go
# DESTDIR=           put before every path, for packaging; systemd is left alone then
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
prefix=${PREFIX:-/usr/local}
dest=${DESTDIR:-}
unit=$dest/etc/systemd/system/podwright.service
doc=$dest$prefix/share/doc/podwright

# A release has its programs in bin/, a checkout in build/bin/.
programs=$here/bin
[ -x "$programs/podwright" ] || programs=$here/build/bin

manager() {
    [ -z "$dest" ] && [ -d /run/systemd/system ] || return 0
    systemctl "$@"
}

put() { # MODE FILE DIRECTORY [NAME]
    mkdir -p "$3"
    # By a rename: a program that runs is never written to.
    install -m "$1" "$2" "$3/.new.$$"
    mv -f "$3/.new.$$" "$3/${4:-$(basename "$2")}"
}

case ${1:-} in
install)
    put 0755 "$programs/podwright" "$dest$prefix/bin"
    put 0755 "$programs/podwright-monitor" "$dest$prefix/bin"
    sed "s|/usr/bin/podwright|$prefix/bin/podwright|; s|/usr/share/doc|$prefix/share/doc|" \
        "$here/deploy/podwright.service" >"/tmp/podwright.service.$$"
    put 0644 "/tmp/podwright.service.$$" "$(dirname "$unit")" podwright.service
    rm -f "/tmp/podwright.service.$$"
    [ -e "$dest/etc/podwright/config.toml" ] || put 0644 "$here/deploy/config.toml" "$dest/etc/podwright"
    for file in "$here"/docs/*.md; do
        put 0644 "$file" "$doc"
    done
    for file in crictl.yaml cni/10-podwright.conflist prometheus/prometheus.yml prometheus/alerts.yml \
        kubelet/20-podwright.conf kubelet/config.yaml kubelet/kubeadm.yaml; do
        put 0644 "$here/deploy/$file" "$doc/examples"
    done
    put 0755 "$here/deploy/install.sh" "$dest$prefix/share/podwright/deploy"
    put 0755 "$here/deploy/leftovers.sh" "$dest$prefix/share/podwright/deploy"
    manager daemon-reload
    # A daemon that ran is replaced; its pods do not notice.
    manager try-restart podwright.service
    echo "installed. Next: podwright check; systemctl enable --now podwright"
    ;;
uninstall | purge)
    manager disable --now podwright.service 2>/dev/null || true
    rm -f "$dest$prefix/bin/podwright" "$unit"
    if [ "$1" = purge ]; then
        [ -n "$dest" ] || sh "$here/deploy/leftovers.sh"
        rm -rf "$dest/etc/podwright" "$dest/etc/default/podwright"
    fi
    # Monitors of pods that go on have it open already.
    rm -f "$dest$prefix/bin/podwright-monitor"
    rm -rf "$doc" "$dest$prefix/share/podwright"
    manager daemon-reload
    ;;
*)
    sed -n '/^# usage/,/^$/p' "$0" | sed 's/^# \{0,1\}//'
    exit 2
    ;;
esac
