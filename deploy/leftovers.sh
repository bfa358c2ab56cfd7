#!/bin/sh
# Ends what podwright left running and removes all that it wrote: pods and their
# processes, mounts, network namespaces, cgroups, images, records. For the end of
# an uninstallation, when the daemon is gone; it knows the default directories.
# What CNI plugins keep (addresses in /var/lib/cni/networks, a bridge) is theirs.
#
# usage: leftovers.sh [STATE [ROOT]]
set -eu

state=${1:-/run/podwright}
root=${2:-/var/lib/podwright}

# descendants PID  its children, and theirs, deepest last
descendants() {
    for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do
        echo "$child"
        descendants "$child"
    done
}

# unmount_below DIR  everything that is mounted in it, the newest first
unmount_below() {
    awk -v dir="$1" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
        while read -r mount; do
            umount -l "$(printf '%b' "$mount")" || true
        done
}

for record in "$state"/pods/*/monitor.json; do
    [ -e "$record" ] || continue
    pid=$(sed -n 's/.*"process":{"pid":\([0-9]*\).*/\1/p' "$record")
    # A number alone may by now be anybody's.
    case $(readlink "/proc/${pid:-none}/exe" 2>/dev/null || true) in
    */podwright-monitor | */podwright-monitor\ *) ;;
    *) continue ;;
    esac
    # The monitor is stopped first, so that it starts and reaps nothing meanwhile.
    kill -STOP "$pid" 2>/dev/null || true
    for process in $(descendants "$pid") "$pid"; do
        kill -KILL "$process" 2>/dev/null || true
    done
done

# What podwright noted of its networks for plugins and other programs, where libcni does.
for pod in "$state"/pods/*; do
    rm -f /var/lib/cni/results/*-"${pod##*/}"-*
done

unmount_below "$state/"
unmount_below "$root/"
for netns in /run/netns/podwright-*; do
    [ -e "$netns" ] || continue
    umount -l "$netns" 2>/dev/null || true
    rm -f "$netns"
done
# With the systemd driver cgroups are systemd's: scopes end with their processes, the slice does not.
[ ! -d /run/systemd/system ] || systemctl stop podwright.slice 2>/dev/null || true
# Processes that were just killed keep their cgroups for a moment.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    find /sys/fs/cgroup -depth -type d \( -path '*/podwright/*' -o -name podwright \) -exec rmdir {} + 2>/dev/null || true
    [ -n "$(find /sys/fs/cgroup -type d -name podwright 2>/dev/null)" ] || break
    sleep 0.2
done
# Not across mounts: what is still mounted somewhere in there is not ours to delete. And
# the directories themselves may be mount points of disks.
for dir in "$state" "$root"; do
    [ -d "$dir" ] || continue
    find "$dir" -xdev -mindepth 1 -delete || echo "left in $dir: $(find "$dir" -mindepth 1 | wc -l) files" >&2
    rmdir "$dir" 2>/dev/null || true
done
