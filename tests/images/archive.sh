#!/bin/bash
# Writes an image as `docker save` does: busybox from build/images, which sleeps.
#
# usage: tests/images/archive.sh OUT.tar NAME
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
out=$(realpath -m "$1") name=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p files/bin
cp "$root/build/images/busybox" files/bin/
ln -s busybox files/bin/sleep
tar -c -C files -f layer.tar .
cat >config.json <<END
{"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sleep", "1000000"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum layer.tar | cut -d' ' -f1)"]}}
END
printf '[{"Config": "config.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]' "$name" >manifest.json
tar -c -f "$out" manifest.json config.json layer.tar
