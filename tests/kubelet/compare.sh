#!/bin/bash
# One pod's life on podwright and on Debian's containerd, field by field: what the kubelet tells of it, what the
# runtime tells, and what a process sees inside. Prints the lines that differ.
#
# usage: tests/kubelet/compare.sh      (needs what run.sh needs, and containerd)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$here/../../build/kubelet-compare
mkdir -p "$out"
for peer in podwright containerd; do
    PEER=$peer LOOK=1 OUT=$out/$peer "$here/run.sh" standalone >&2
done

# What differs from run to run, and from path to path.
plain() {
    sed -E -e 's/[0-9a-f]{64}/ID/g; s/\b[0-9a-f]{32}\b/UID/g; s/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/UID/g' \
        -e 's/(podwright|containerd):\/\//RUNTIME:\/\//; s/10\.8[89]\.[0-9]+\.[0-9]+/ADDRESS/g; s/podw[0-9a-f]{6}/NODE/g' \
        -e 's/[0-9]{4}-[0-9-]{5}T[0-9:.]+(Z|[+-][0-9:]{5})/TIME/g; s/\b1[78][0-9]{17}\b/TIME/g' \
        -e 's,/run/podwright-test/NODE|/run/peer,STATE,g; s,(containers/[a-z]+/)[0-9a-f]+,\1FILE,'
}

fields() {
    jq -r 'del(.info?) | paths(scalars) as $path | "\($path | map(tostring) | join(".")) = \(getpath($path))"' "$1" | plain
}

for file in "$out"/podwright/look/*; do
    name=$(basename "$file")
    other=$out/containerd/look/$name
    # How often a container was tried by then differs.
    [ -e "$other" ] || { echo "$name   only of podwright"; continue; }
    if [[ "$name" != *.json ]]; then
        differs=$(diff <(plain <"$file") <(plain <"$other")) || true
    else
        differs=$(diff <(fields "$file") <(fields "$other")) || true
    fi
    differs=$(grep '^[<>]' <<<"$differs" || true)
    if [ -n "$differs" ]; then
        echo "$name   (< podwright, > containerd)"
        echo "$differs" | cut -c1-240 | sed 's/^/    /'
    fi
done
