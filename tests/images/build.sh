#!/bin/bash
# Builds the static programs of the stand-in images: busybox from Debian's
# source package, and the small C programs beside this file.
#
# usage: tests/images/build.sh [OUT]      (OUT: build/images of the checkout)
#
# Each output is rebuilt only when its own source is newer. Nothing outside OUT
# is touched: the source list that busybox needs is passed to apt by option.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../build/images}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Two test binaries may ask for the programs at the same time.
exec 9>"$out/.lock"
flock 9

for source in "$here"/*.c; do
    program=$out/$(basename "$source" .c)
    if [ ! -e "$program" ] || [ "$source" -nt "$program" ]; then
        echo "  CC       $(basename "$program")" >&2
        cc -static -O2 -Wall -Wextra -o "$program.new" "$source"
        strip "$program.new"
        mv "$program.new" "$program"
    fi
done

# Debian's own static configuration, except that the shell must run `ls` from
# the file system (the conformance suite masks /bin/ls and runs the shell), and
# that the suite also calls ipcs and pgrep.
busybox() {
    local work=$out/busybox-src config suite
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
    rm -rf "$work"
    mkdir -p "$work/lists/partial"
    echo "deb-src http://deb.debian.org/debian $suite main" >"$work/sources.list"
    local apt=(apt-get -qq -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$work" && "${apt[@]}" source busybox >fetch.log 2>&1) || { cat "$work/fetch.log" >&2; return 1; }
    cd "$(find "$work" -maxdepth 1 -type d -name 'busybox-[0-9]*')"
    config=debian/config/pkg/static
    sed -E \
        -e 's/^CONFIG_FEATURE_(SH_STANDALONE|PREFER_APPLETS|SH_NOFORK)=y$/# CONFIG_FEATURE_\1 is not set/' \
        -e 's/^# CONFIG_(IPCS|PGREP|PKILL|FEATURE_BRCTL_SHOW|FEATURE_BRCTL_FANCY) is not set$/CONFIG_\1=y/' \
        "$config" >.config
    (yes '' 2>/dev/null || true) | make -s oldconfig >/dev/null 2>&1
    make -s -j"$(nproc)" busybox >make.log 2>&1 || { tail -20 make.log >&2; return 1; }
    ./busybox --list-full >"$out/busybox.applets"
    mv busybox "$out/busybox"
    rm -rf "$work"
}
if [ ! -e "$out/busybox" ] || [ "$here/build.sh" -nt "$out/busybox" ]; then
    echo "  BUILD    busybox (from Debian's source package)" >&2
    busybox
fi
