#!/bin/bash
# Runs critest against a runtime, without the specs of skips.txt.
#
# usage: tests/critest/run.sh ENDPOINT [critest flags...]
#        SKIPS=FILE   another list of skips (empty: none at all)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
endpoint=$1
shift

skips=()
if [ -n "${SKIPS-$here/skips.txt}" ]; then
    while read -r line; do
        skips+=("-ginkgo.skip=$line")
    done < <(sed -e 's/^[[:space:]]*//' -e '/^#/d' -e '/^$/d' "${SKIPS-$here/skips.txt}")
fi
# The suite loads /etc/crictl.yaml or one beside the working directory: neither is ours.
cd /
exec "${CRITEST:-$root/build/bin/critest}" -config /dev/null \
    -runtime-endpoint "$endpoint" -image-endpoint "$endpoint" \
    -ginkgo.no-color "${skips[@]}" "$@"
