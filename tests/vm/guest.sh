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
ip link set lo up
# critest loads its AppArmor profiles by sudo; here everybody is root.
printf '#!/bin/sh\nexec "$@"\n' >/usr/local/bin/sudo
chmod 755 /usr/local/bin/sudo

echo "guest: kernel $(uname -r), cgroups $(stat -f -c %T /sys/fs/cgroup), process 1 $(cat /proc/1/comm)"
echo "guest: controllers $(cat /sys/fs/cgroup/cgroup.controllers), security $(cat /sys/kernel/security/lsm)"
echo "guest: $(runc --version | head -1), $(crun --version | head -1), / is $(findmnt -n -o PROPAGATION /)"

results=()
failed=0
for step in $STEPS; do
    started=$SECONDS
    runtime=${step#*:}
    echo "guest: $step"
    case $step in
    node:*)
        # Words, each a part of tests' names.
        PODWRIGHT_TEST_RUNTIME=$runtime "$root/build/bin/node-tests" --test-threads=2 $FILTER 2>&1
        ;;
    critest:*)
        RUNTIME=$runtime "$root/tests/critest/suite.sh" ${FOCUS:+"-ginkgo.focus=$FOCUS"} 2>&1
        ;;
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
