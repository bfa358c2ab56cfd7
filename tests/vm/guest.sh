#!/bin/bash
# Inside the guest of tests/vm/run.sh: runs the steps of $STEPS one after the
# other and says in the last line whether all of them passed.
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PODWRIGHT_BIN=$root/build/bin/podwright PODWRIGHT_MONITOR=$root/build/bin/podwright-monitor
# An emulated processor takes some ten times as long.
export PODWRIGHT_TEST_PATIENCE=10
# Debian's kernel has project quotas for ext4 and xfs: here their tests must not pass by without them.
export PODWRIGHT_TEST_QUOTAS=1
# Thousands of plugins' processes, for minutes, for what the kernel has no part in.
export PODWRIGHT_TEST_CHURN=12
# As much as the unit of the package gives a daemon.
ulimit -n 524288
ip link set lo up
# critest loads its AppArmor profiles by sudo; here everybody is root.
printf '#!/bin/sh\nexec "$@"\n' >/usr/local/bin/sudo
chmod 755 /usr/local/bin/sudo
# crun speaks to systemd by way of it; runc does not need it.
systemctl start dbus.socket

echo "guest: kernel $(uname -r), cgroups $(stat -f -c %T /sys/fs/cgroup), process 1 $(cat /proc/1/comm)"
echo "guest: controllers $(cat /sys/fs/cgroup/cgroup.controllers), security $(cat /sys/kernel/security/lsm)"
echo "guest: $(runc --version | head -1), $(crun --version | head -1), / is $(findmnt -n -o PROPAGATION /)"

results=()
failed=0
# After a reboot in the middle of the steps: what is left of them, and how the others went.
saved=/var/lib/podwright-vm.saved
if [ -e "$saved" ]; then
    . "$saved"
    rm -f "$saved"
fi
left=$STEPS
for step in $STEPS; do
    left=${left#*"$step"}
    started=$SECONDS
    # WHAT:RUNTIME, and perhaps :DRIVER.
    IFS=: read -r _ runtime driver <<<"$step"
    export PODWRIGHT_TEST_CGROUP_DRIVER=${driver:-cgroupfs}
    echo "guest: $step"
    case $step in
    node:*)
        # Pods with user namespaces need mapped ids on tmpfs, where /run is: Linux 6.3.
        skip=()
        [ "$(printf '%s\n' 6.3 "$(uname -r)" | sort -V | head -1)" = 6.3 ] || skip=(--skip userns::)
        # Words, each a part of tests' names.
        PODWRIGHT_TEST_RUNTIME=$runtime "$root/build/bin/node-tests" --test-threads=2 "${skip[@]}" $FILTER 2>&1
        ;;
    critest:*)
        RUNTIME=$runtime "$root/tests/critest/suite.sh" ${FOCUS:+"-ginkgo.focus=$FOCUS"} 2>&1
        ;;
    deb)
        "$root/tests/vm/deb.sh" before 2>&1 && {
            results+=("deb, before the reboot: exit 0, $((SECONDS - started)) s")
            { declare -p results failed; printf 'STEPS=%q\n' "deb-after$left"; } >"$saved"
            sync
            # By force: however this unit ended, it would switch the machine off.
            systemctl reboot --force
            sleep infinity
        }
        ;;
    deb-after) "$root/tests/vm/deb.sh" after 2>&1 ;;
    selinux) "$root/tests/vm/selinux.sh" 2>&1 ;;
    script:*) bash -x "$root/tests/vm/${step#script:}" 2>&1 ;;
    *) echo "no such step"; false ;;
    esac
    code=$?
    [ $code = 0 ] || failed=1
    results+=("$step: exit $code, $((SECONDS - started)) s")
done
printf 'guest: %s\n' "${results[@]}"
dmesg --level=emerg,alert,crit,err | tail -20
if [ $failed = 0 ]; then echo 'test-vm: all passed'; else echo 'test-vm: failed'; fi
# The power goes off at once: first let the serial line drain.
stty -F /dev/ttyS1 raw
exit $failed
