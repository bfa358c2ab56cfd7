#!/bin/bash
# A tour: podwright on a throw-away node of its own, driven by the real crictl.
# Called by `make run`, which builds what is used here.
#
# usage: scripts/run.sh          every step with its time, then all is removed
#        SERVE=1 scripts/run.sh  leaves the node up to play with, until Ctrl-C
set -euo pipefail
source "$(dirname "$0")/../tests/e2e/node.sh"

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi
image=docker.io/podwright/web:latest
number=0 command_pid='' tour=unfinished

say() { printf '%s\n' "$bold$*$plain"; }
milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# step NAME COMMAND...  runs it, prints its time and its output, which is in $output then.
# In the background and waited for, so that a signal ends the tour at once.
step() {
    local name=$1 start took code=0
    shift
    number=$((number + 1))
    start=$(milliseconds)
    "$@" >"$NODE_TMP/output" 2>"$NODE_TMP/errors" &
    command_pid=$!
    wait "$command_pid" || code=$?
    command_pid=''
    took=$(($(milliseconds) - start))
    output=$(cat "$NODE_TMP/output")
    printf '%s%2d. %-34s%s %s%6d ms%s\n' "$bold" "$number" "$name" "$plain" "$dim" "$took" "$plain"
    [ -z "$output" ] || printf '%s\n' "$output" | cut -c1-150 | sed 's/^/      /'
    [ $code = 0 ] || sed 's/^/      /' "$NODE_TMP/errors"
    return $code
}

finish() {
    local code=$? result=0
    trap '' INT TERM
    # A signal may find us inside a function whose output is thrown away.
    exec 1>&8 2>&9
    set +e
    [ -z "$command_pid" ] || kill -KILL "$command_pid" 2>/dev/null
    if [ $code != 0 ] && [ "$tour" = unfinished ] && [ -e "${DAEMON_LOG:-}" ] && [ $code -lt 128 ]; then
        say "step $number failed; the daemon's log ends with:"
        tail -30 "$DAEMON_LOG" | sed 's/^/      /'
    fi
    node_down || { result=1; code=1; }
    if [ $result = 0 ]; then
        say "Removed. Left on this machine: no process, mount, network namespace, link, cgroup or iptables rule."
    else
        say "The list above could not be removed."
    fi
    exit $code
}
exec 8>&1 9>&2
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fetch() { curl -sS --max-time 10 --retry 20 --retry-connrefused --retry-delay 0 --retry-max-time 10 "$1"; }
summary() { crictl info | jq -r '.status.conditions[] | "\(.type): \(.status)"'; }
stats() {
    local answer
    if answer=$(crictl stats 2>&1); then
        # It clears the screen first, as a program to watch does.
        sed 's/\x1b\[[0-9;]*[A-Za-z]//g' <<<"$answer"
    elif grep -q -i unimplemented <<<"$answer"; then
        echo 'not answered yet (Unimplemented)'
    else
        printf '%s\n' "$answer"
        return 1
    fi
}
metrics() {
    [ -n "$METRICS" ] || return 0
    curl -sS --max-time 10 "http://$METRICS/metrics" >"$NODE_TMP/metrics" 2>/dev/null || { echo "no metrics at $METRICS"; return 0; }
    echo "$(grep -c -v '^#' "$NODE_TMP/metrics") series at http://$METRICS/metrics, such as"
    grep -v -m 5 '^#' "$NODE_TMP/metrics"
}

say 'A registry, a node directory and the daemon'
node_up web
echo "      node $NODE, registry $REGISTRY, daemon pid $DAEMON_PID"
cat >"$NODE_TMP/pod.json" <<JSON
{
  "metadata": { "name": "web", "namespace": "default", "uid": "$(cat /proc/sys/kernel/random/uuid)", "attempt": 0 },
  "hostname": "web",
  "log_directory": "$LOGS/web",
  "linux": { "cgroup_parent": "$CGROUP_PARENT" }
}
JSON
cat >"$NODE_TMP/container.json" <<JSON
{
  "metadata": { "name": "server" },
  "image": { "image": "$image" },
  "log_path": "server.log",
  "linux": {}
}
JSON
mkdir -p "$LOGS/web"

if [ -n "${SERVE:-}" ]; then
    cp "$NODE_TMP"/{pod,container}.json "$NODE/"
    cat <<TEXT

The node is up. In another terminal:

  export CRI="$bin/crictl --config /dev/null -r $ENDPOINT"
  \$CRI pull $image
  POD=\$(\$CRI runp $NODE/pod.json)
  CTR=\$(\$CRI create \$POD $NODE/container.json $NODE/pod.json)
  \$CRI start \$CTR
  curl http://\$(\$CRI inspectp \$POD | jq -r .status.network.ip)/
  \$CRI exec -s \$CTR ps
  \$CRI logs \$CTR
  tail -f $DAEMON_LOG
  curl http://$METRICS/metrics

Ctrl-C here removes everything.
TEXT
    tour=done
    wait "$DAEMON_PID" || true
    echo 'the daemon has ended'
    exit 1
fi

step 'version' crictl version
step 'info' summary
step "pull $image" crictl pull "$image"
step 'images' crictl images
step 'runp: the pod' crictl runp "$NODE_TMP/pod.json"
pod=$output
step 'create: the container' crictl create "$pod" "$NODE_TMP/container.json" "$NODE_TMP/pod.json"
container=$output
step 'start' crictl start "$container"
address=$(crictl inspectp "$pod" | jq -r .status.network.ip)
step "fetch http://$address/" fetch "http://$address/"
step 'exec -s: a command inside' crictl exec -s "$container" ps
step 'ps' crictl ps
step 'logs' crictl logs "$container"
step 'stats' stats
step 'metrics' metrics
step 'stop the container' crictl stop "$container"
step 'rm' crictl rm "$container"
step 'stopp: the pod' crictl stopp "$pod"
step 'rmp' crictl rmp "$pod"
step 'rmi' crictl rmi "$image"
if ! leaked=$(node_idle); then
    say 'The daemon has left behind:'
    printf '%s\n' "$leaked" | sed 's/^/      /'
    exit 1
fi
tour=done
