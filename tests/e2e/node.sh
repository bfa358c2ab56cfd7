# A throw-away node for shell scripts: loopback registry, scratch directory,
# daemon. Sourced, not run.
#
#   node_up critest|web    sets NODE, NODE_ID, CONFIG, SOCKET, ENDPOINT, LOGS,
#                          DAEMON_LOG, METRICS, REGISTRY, DAEMON_PID
#   node_idle              true when only the daemon itself belongs to the node
#   node_down              removes everything; false and a list when it could not
#
# PODWRIGHT_BIN names another daemon than build/bin/podwright.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=$root/build/bin
testkit=$bin/podwright-testkit
NODE='' NODE_TMP='' DAEMON_PID=''

# crictl's settings come from here alone, never from /etc/crictl.yaml.
crictl() {
    "$bin/crictl" --config /dev/null -r "$ENDPOINT" -t "${CRICTL_TIMEOUT:-60s}" "$@"
}

node_up() {
    NODE_TMP=$(mktemp -d "${node_tmp_base:-/tmp}/podwright-node.XXXXXX")
    # In sessions of their own: Ctrl-C must not end them half-way, when nobody knows yet what they made.
    REGISTRY=$(setsid "$testkit" registry start --dir "$NODE_TMP")
    "$testkit" images push --registry "$REGISTRY" --set "$1" >"$NODE_TMP/images"
    NODE=$(setsid "$testkit" scratch new --registry "$REGISTRY" --runtime "${RUNTIME:-runc}")
    eval "$("$testkit" scratch env "$NODE")"
    daemon_start
}

daemon_start() {
    "${PODWRIGHT_BIN:-$bin/podwright}" serve --config "$CONFIG" >>"$DAEMON_LOG" 2>&1 &
    DAEMON_PID=$!
    # It answers as soon as it has recovered; ten seconds are for a busy machine.
    for _ in $(seq 1 200); do
        if crictl version >/dev/null 2>&1; then
            return 0
        fi
        kill -0 "$DAEMON_PID" 2>/dev/null || break
        sleep 0.05
    done
    echo "the daemon does not answer; its log ends with:" >&2
    tail -40 "$DAEMON_LOG" >&2
    return 1
}

# Waits for the daemon's end; kills it when SIGTERM is not enough.
daemon_stop() {
    [ -n "$DAEMON_PID" ] || return 0
    kill -TERM "$DAEMON_PID" 2>/dev/null
    for _ in $(seq 1 200); do
        kill -0 "$DAEMON_PID" 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL "$DAEMON_PID" 2>/dev/null
    wait "$DAEMON_PID" 2>/dev/null
    DAEMON_PID=''
}

node_idle() {
    local traces daemon
    daemon=$(tr '\0' ' ' <"/proc/$DAEMON_PID/cmdline")
    # The bridge and the pods' cgroup parent stay for the next pod.
    traces=$("$testkit" scratch ledger "$NODE" 2>&1 || true)
    traces=$(grep -E '^(process|mount|netns|address|cgroup|rule): ' <<<"$traces" |
        grep -v -x -F "process: ${daemon% }" | grep -v -E "^cgroup: .*/$NODE_ID(\.slice)?\$" || true)
    [ -z "$traces" ] || { echo "$traces"; return 1; }
}

node_down() {
    local result=0
    set +e
    daemon_stop
    if [ -n "$NODE" ]; then
        "$testkit" scratch remove "$NODE" || result=1
        NODE=''
    fi
    if [ -n "$NODE_TMP" ]; then
        if [ -e "$NODE_TMP/registry.pid" ]; then
            kill -KILL "$(cat "$NODE_TMP/registry.pid")" 2>/dev/null
        fi
        rm -rf "$NODE_TMP"
        NODE_TMP=''
    fi
    return $result
}
