#!/bin/bash
# In the guest with SELinux: which labels pods get, as the kernel sees them, on
# processes, files and mounts. The guest is permissive: what is looked at are the
# labels, not what the policy makes of them.
#
# usage: selinux.sh
set -euo pipefail
source "$(dirname "$0")/../e2e/node.sh"

say() { echo "selinux.sh: $*"; }
fail() {
    say "FAILED: $*"
    tail -40 "$DAEMON_LOG"
    exit 1
}
finish() {
    local code=$?
    node_down || code=1
    [ $code != 0 ] || say "passed"
    exit $code
}
trap finish EXIT

# is WHAT FOUND PATTERN  an extended regular expression for the whole of it
is() { grep -qxE "$3" <<<"$2" || fail "$1 is ${2:-nothing}, not $3"; }
file_label() { stat -c %C "$1"; }
# pod NAME [SECURITY-CONTEXT [ANNOTATIONS]]  prints its id
pod() {
    printf '{ "metadata": { "name": "%s", "namespace": "default", "uid": "%s" }, "annotations": %s, "linux": { "security_context": %s } }' \
        "$1" "$1" "${3:-{\}}" "${2:-{\}}" >"$work/pod-$1.json"
    crictl runp "$work/pod-$1.json"
}
# container POD-NAME POD-ID NAME [SECURITY-CONTEXT [MOUNTS]]  prints its id
container() {
    printf '{ "metadata": { "name": "%s" }, "image": { "image": "%s" }, "command": ["sleep", "1000000"], "mounts": %s, "linux": { "security_context": %s } }' \
        "$3" "$image" "${5:-[]}" "${4:-{\}}" >"$work/container.json"
    crictl create "$2" "$work/container.json" "$work/pod-$1.json"
}
started() {
    local id
    id=$(container "$@")
    crictl start "$id" >/dev/null
    echo "$id"
}
process_label() { tr -d '\0' <"/proc/$(crictl inspect "$1" | jq .info.pid)/attr/current"; }
# refused WORDS COMMAND...
refused() {
    local words=$1 answer
    shift
    if answer=$("$@" 2>&1); then fail "not refused: $words"; fi
    grep -qF -- "$words" <<<"$answer" || fail "refused with other words: $answer"
}

[ "$(getenforce)" = Permissive ] || fail "SELinux is $(getenforce)"
node_up critest
work=$NODE_TMP/selinux
mkdir -p "$work"
image=$(grep -m1 busybox "$NODE_TMP/images" | awk '{print $1}') || true
[ -n "$image" ] || fail "no busybox in $(cat "$NODE_TMP/images")"
crictl pull "$image" >/dev/null

say "check and status tell of it"
"$root/build/bin/podwright" check --config "$CONFIG" 2>&1 | grep -E 'SELinux +permissive, containers run as system_u:system_r:container_t:s0' ||
    fail "$("$root/build/bin/podwright" check --config "$CONFIG" 2>&1)"
is "info.selinux" "$(crictl info | jq -r .selinux.process)" 'system_u:system_r:container_t:s0'

say "each pod has categories of its own"
level='s0:c[0-9]+,c[0-9]+'
one=$(pod one)
two=$(pod two)
first=$(started one "$one" first)
second=$(started one "$one" second)
other=$(started two "$two" other)
of_one=$(process_label "$first")
of_two=$(process_label "$other")
is "a process" "$of_one" "system_u:system_r:container_t:$level"
is "a process" "$of_two" "system_u:system_r:container_t:$level"
[ "$of_one" != "$of_two" ] || fail "two pods have one level: $of_one"
[ "$of_one" = "$(process_label "$second")" ] || fail "two containers of a pod have two labels"
is "an exec" "$(crictl exec -s "$first" cat /proc/self/attr/current | tr -d '\0')" "$of_one"

say "their file systems have the same"
file=${of_one/system_r:container_t/object_r:container_file_t}
mounts=$(crictl exec -s "$first" cat /proc/self/mountinfo)
grep -qE " / / .* overlay .*context=\"?$file\"?[, ]" <<<"$mounts" || fail "the root is not mounted with $file: $mounts"
for path in / /bin/busybox /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev/null; do
    pid=$(crictl inspect "$first" | jq .info.pid)
    is "$path" "$(file_label "/proc/$pid/root$path")" "$file"
done
crictl exec -s "$first" sh -c 'echo x >/tmp/written && echo x >/dev/shm/written' || fail "cannot write"
is "what was written" "$(file_label "/proc/$pid/root/tmp/written")" "$file"
is "what was written to shm" "$(file_label "/proc/$pid/root/dev/shm/written")" "$file"

say "volumes are relabelled when they ask for it, links not followed"
volume=$work/volume
mkdir -p "$volume/deep/er" "$work/outside" "$work/asis"
touch "$volume/deep/er/file" "$work/outside/secret" "$work/asis/file"
ln -s "$work/outside" "$volume/link"
ln -s ../outside/secret "$volume/deep/link"
outside=$(file_label "$work/outside/secret")
asis=$(file_label "$work/asis")
mount() { printf '[{ "container_path": "/v", "host_path": "%s", "selinux_relabel": %s }]' "$1" "${2:-true}"; }
started one "$one" relabelled '{}' "$(mount "$volume")" >/dev/null
for path in "$volume" "$volume/deep/er/file" "$volume/link" "$volume/deep/link"; do
    is "$path" "$(file_label "$path")" "$file"
done
is "outside" "$(file_label "$work/outside/secret")" "$outside"
is "outside" "$(file_label "$work/outside")" "$outside"
started one "$one" as-it-is '{}' "$(mount "$work/asis" false)" >/dev/null
is "what did not ask" "$(file_label "$work/asis")" "$asis"
other_file=${of_two/system_r:container_t/object_r:container_file_t}
started two "$two" takes-over '{}' "$(mount "$volume")" >/dev/null
is "taken over" "$(file_label "$volume/deep/er/file")" "$other_file"
started two "$two" super '{ "selinux_options": { "type": "spc_t" } }' "$(mount "$work/asis")" >/dev/null
is "a volume of spc_t" "$(file_label "$work/asis")" "$asis"
before=$(file_label /usr)
refused "may not be relabelled" container one "$one" usr '{}' "$(mount /usr)"
is "/usr" "$(file_label /usr)" "$before"

say "what is asked for is given, or refused with the field's name"
asked=$(started one "$one" asked '{ "selinux_options": { "level": "s0:c10,c20" } }')
is "a level" "$(process_label "$asked")" 'system_u:system_r:container_t:s0:c10,c20'
shared='system_u:object_r:container_file_t:s0'
is "the pod's files, now shared" "$(file_label "/proc/$pid/root/etc/hosts")" "$shared"
refused "config.linux.security_context.selinux_options.type: label" \
    container one "$one" wrong '{ "selinux_options": { "type": "nosuch_t" } }'
refused "config.linux.security_context.selinux_options.level: label" \
    container one "$one" wrong '{ "selinux_options": { "level": "s0:c5000" } }'
refused "config.linux.security_context.selinux_options.user: label" pod wrong '{ "selinux_options": { "user": "nosuch_u" } }'
level_pod=$(pod level '{ "selinux_options": { "level": "s0:c100,c200" } }')
asked=$(started level "$level_pod" asked)
is "a pod's level" "$(process_label "$asked")" 'system_u:system_r:container_t:s0:c100,c200'

say "who is privileged or in the host's namespaces is not confined"
privileged=$(pod privileged '{ "privileged": true }')
asked=$(started privileged "$privileged" asked '{ "privileged": true }')
is "privileged" "$(process_label "$asked")" 'system_u:system_r:spc_t:s0'
hosts=$(pod hosts '{ "namespace_options": { "pid": 2, "network": 2 } }')
asked=$(started hosts "$hosts" asked '{ "namespace_options": { "pid": 2, "network": 2 } }')
is "host pid" "$(process_label "$asked")" 'system_u:system_r:spc_t:s0'
network=$(pod network '{ "namespace_options": { "network": 2 } }')
asked=$(started network "$network" asked '{ "namespace_options": { "network": 2 } }')
is "host network" "$(process_label "$asked")" "system_u:system_r:container_t:$level"

say "an image as a volume"
asked=$(started one "$one" image '{}' "[{ \"container_path\": \"/v\", \"image\": { \"image\": \"$image\" }, \"readonly\": true }]")
pid=$(crictl inspect "$asked" | jq .info.pid)
is "its files" "$(file_label "/proc/$pid/root/v/bin/busybox")" "$file"

say "a daemon that is killed keeps the levels"
kill -KILL "$DAEMON_PID"
wait "$DAEMON_PID" 2>/dev/null || true
daemon_start
third=$(started one "$one" third)
is "after the restart" "$(process_label "$third")" "$of_one"
is "of the record" "$(crictl inspectp "$one" | jq -r .info.config.selinux_level)" "${of_one#system_u:system_r:container_t:}"
new=$(pod new)
is "a new pod's level" "$(crictl inspectp "$new" | jq -r .info.config.selinux_level)" "$level"
