#!/bin/bash
# Latency of status and list calls with 200 pods, while one CNI plugin hangs and
# one container does not die. Needs cgroup v1, where a frozen process takes no
# signal.
#
# usage: tests/bench/trouble.sh [--calls NUMBER]
#        PODS=200      how many
#        KEEP_LOGS=DIR keeps the daemon's log
#
# The table goes to stdout, the numbers to build/bench-trouble.json.
set -euo pipefail
source "$(dirname "$0")/daemons.sh"
client=$(bench_client)

plugins=$work/plugins
mkdir -p "$plugins"
cat >"$plugins/bridge" <<'END'
#!/bin/sh
case $CNI_COMMAND$CNI_ARGS in
ADD*K8S_POD_NAME=hangs*) exec sleep 100000 ;;
esac
exec /usr/lib/cni/bridge
END
chmod +x "$plugins/bridge"

node_up web
daemon_stop
mkdir -p "$NODE/config.toml.d"
cat >"$NODE/config.toml.d/60-trouble.toml" <<END
[network]
bin_dirs = ["$plugins", "/usr/lib/cni", "/opt/cni/bin"]
END
daemon_start

echo "$(loads before), $(nproc) processors, Linux $(uname -r), $(runc --version | head -1)"
echo
"$client" --b "podwright=$ENDPOINT" --b-dir "$NODE" --b-cgroup "/$NODE_ID" --logs "$work/logs" \
    --json "$root/build/bench-trouble.json" --trouble "${PODS:-200}" "$@" &
wait $!
loads after
