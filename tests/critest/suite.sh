#!/bin/bash
# The conformance suite against podwright on a throw-away node.
#
# usage: tests/critest/suite.sh [critest flags...]
#        e.g. -ginkgo.focus='PodSandbox' ; KEEP_LOG=FILE keeps the daemon's log
set -euo pipefail
source "$(dirname "$0")/../e2e/node.sh"

finish() {
    local code=$?
    trap '' INT TERM
    # A signal may find us inside a function whose output is thrown away.
    exec 1>&8 2>&9
    [ -z "${KEEP_LOG:-}" ] || cp "$DAEMON_LOG" "$KEEP_LOG" || true
    if [ $code != 0 ] && [ -n "$NODE" ]; then
        echo "daemon's log ends with:" >&2
        tail -60 "$DAEMON_LOG" >&2
    fi
    # The suite leaves the System V segments of its HostIPC specs to the machine.
    comm -13 <(echo "$segments") <(ipcs -m | awk '$5 == 1048576 && $6 == 0 { print $2 }' | sort) |
        while read -r segment; do ipcrm -m "$segment"; done
    node_down || code=1
    exit $code
}
segments=$(ipcs -m | awk '$5 == 1048576 { print $2 }' | sort)
exec 8>&1 9>&2
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

node_up critest
"$root/tests/critest/run.sh" "$ENDPOINT" "$@" &
suite=$!
wait $suite
# The suite removes every pod it makes: what is still there was leaked by the daemon.
if ! leaked=$(node_idle); then
    echo "left behind after the suite:"
    echo "$leaked"
    exit 1
fi
