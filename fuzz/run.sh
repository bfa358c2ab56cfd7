#!/bin/bash
# Runs one fuzz target for a bounded time, from its seeds and from what earlier
# runs found (build/fuzz-corpus). A finding is left in build/fuzz-findings.
#
# usage: fuzz/run.sh PROGRAM SEEDS SECONDS
set -euo pipefail

program=$1 seeds=$2 seconds=$3
build=$(cd "$(dirname "$0")/.." && pwd)/build
target=$(basename "$program")
corpus=$build/fuzz-corpus/$target
findings=$build/fuzz-findings
mkdir -p "$corpus" "$findings"

# The targets do not remove their directory: libFuzzer ends without unwinding.
TMPDIR=$(mktemp -d /dev/shm/podwright-fuzz.XXXXXX)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

# As in a Rust program, whose start libFuzzer replaces: a worker that has ended is an error, not our end.
trap '' PIPE
# 64 KiB: enough for a tar with many entries. 2 GiB and 25 s for one input would be findings.
if ! "$program" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=25 -print_final_stats=1 \
    -artifact_prefix="$findings/$target-" "$corpus" "$seeds" >"$TMPDIR/log" 2>&1; then
    tail -40 "$TMPDIR/log" >&2
    echo "$target: a finding, see $findings" >&2
    exit 1
fi
awk -v target="$target" '/stat::number_of_executed_units/ { runs = $2 } /cov: / { line = $0 } END {
    match(line, /cov: [0-9]+/); printf "%-11s %9d runs, %s\n", target, runs, substr(line, RSTART, RLENGTH)
}' "$TMPDIR/log"
