#!/bin/bash
# Measures streams of podwright against Debian's containerd with the same clients
# over SPDY. crictl: time of a session, 1 GiB of output, 512 MiB through a port to
# curl. tests/streaming-client, which is one process with client-go in it and so
# without a start of its own in the times: a session from the CRI call to its
# status, and 512 MiB through a port to the client itself.
# Both daemons are up at the same time, everything is on tmpfs; the runs alternate.
#
# usage: tests/bench/streams.sh [ROUNDS]
set -euo pipefail
source "$(dirname "$0")/daemons.sh"
rounds=${1:-5}

before_finish() {
    for endpoint in "${ENDPOINT:-}" "${theirs:-}"; do
        [ -z "$endpoint" ] || ENDPOINT=$endpoint crictl rmp -a -f >/dev/null 2>&1
    done
}

now() { date +%s%N; }
# timed COMMAND...: its milliseconds, with one digit behind the point.
timed() {
    local start
    start=$(now)
    "$@" >/dev/null
    echo $((($(now) - start) / 100000)) | sed 's/.$/.&/; s/^\./0./'
}
median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

# begin ENDPOINT CGROUP: a pod with a web server that has a file of 512 MiB.
begin() {
    local ENDPOINT=$1 pod container
    mkdir -p "$work/logs"
    cat >"$work/pod.json" <<JSON
{ "metadata": { "name": "streams", "namespace": "default", "uid": "streams", "attempt": 0 },
  "log_directory": "$work/logs", "linux": { "cgroup_parent": "$2" } }
JSON
    cat >"$work/container.json" <<JSON
{ "metadata": { "name": "server" }, "image": { "image": "docker.io/podwright/web:latest" }, "log_path": "server.log",
  "command": ["sh", "-c", "dd if=/dev/zero of=/tmp/big bs=1M count=512; exec httpd -f -p 8080 -h /tmp"], "linux": {} }
JSON
    crictl pull docker.io/podwright/web:latest >/dev/null
    pod=$(crictl runp "$work/pod.json")
    container=$(crictl create "$pod" "$work/container.json" "$work/pod.json")
    crictl start "$container" >/dev/null
    for _ in $(seq 100); do
        crictl exec -s "$container" wget -q -s http://127.0.0.1:8080/big 2>/dev/null && break
        sleep 0.1
    done
    echo "$pod $container"
}

session() { crictl exec "$container" true; }
output() { crictl exec "$container" dd if=/dev/zero bs=1M count=1024 2>/dev/null; }
fetch() { curl -sS --retry 20 --retry-connrefused --retry-delay 1 --max-time 60 -o /dev/null "http://127.0.0.1:$port/big"; }

cd "$root"
node_up web
"$testkit" certs.d --dir "$work/certs.d" --registry "$REGISTRY"
ours=$ENDPOINT theirs=unix://$("$here/containerd.sh" start "$peer" "$work/certs.d")
read -r our_pod our_container < <(begin "$ours" "/$NODE_ID")
read -r their_pod their_container < <(begin "$theirs" "/$(cat "$peer/bridge")")
echo "load before: $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) processors, Linux $(uname -r)"
for round in $(seq "$rounds"); do
    for who in containerd podwright; do
        if [ $who = podwright ]; then
            ENDPOINT=$ours pod=$our_pod container=$our_container
        else
            ENDPOINT=$theirs pod=$their_pod container=$their_container
        fi
        client="$bin/streaming-client -cri $ENDPOINT -container $container -pod $pod -port 8080"
        $client -sessions 20 times >>"$work/$who.times"
        $client -file /big -megabytes 512 throughput >>"$work/$who.direct"
        for _ in 1 2 3 4; do timed session >>"$work/$who.session"; done
        timed crictl version >>"$work/$who.client"
        timed output >>"$work/$who.output"
        port=$((20000 + RANDOM % 10000))
        "$bin/crictl" --config /dev/null -r "$ENDPOINT" port-forward "$pod" "$port:8080" >/dev/null 2>&1 &
        forward=$!
        for _ in $(seq 100); do (: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.05; done
        timed fetch >>"$work/$who.forward"
        kill $forward
        wait $forward 2>/dev/null || true
    done
done
printf '\n%-52s %12s %12s\n' "median, ms" containerd podwright
for what in "client:crictl version (the client's own share)" "session:crictl exec true" "times:a session of true, client-go in one process" "output:1 GiB of output" "forward:512 MiB through a port, crictl and curl" "direct:512 MiB through a port, client-go"; do
    printf '%-52s %12s %12s\n' "${what#*:}" "$(median <"$work/containerd.${what%%:*}")" "$(median <"$work/podwright.${what%%:*}")"
done
echo "load after: $(cut -d' ' -f1-3 /proc/loadavg)"
ENDPOINT=$ours
