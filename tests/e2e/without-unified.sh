#!/bin/bash
# Runs a command in a mount namespace where the cgroup v1 hierarchies stand alone:
# crun refuses hosts that mount cgroup v2 beside them. The host keeps its mounts.
#
# usage: tests/e2e/without-unified.sh COMMAND [ARGUMENT...]
#        PODWRIGHT_TEST_RUNTIME=crun tests/e2e/without-unified.sh cargo test --test node
set -euo pipefail

if [ "${WITHOUT_UNIFIED:-}" != 1 ]; then
    # Private, so that nothing of what follows reaches the host.
    WITHOUT_UNIFIED=1 exec unshare --mount --propagation private "$0" "$@"
fi
unset WITHOUT_UNIFIED
if mountpoint -q /sys/fs/cgroup/unified; then
    umount /sys/fs/cgroup/unified
    # crun makes its directories there all the same: not in the host's.
    mount -t tmpfs -o mode=755 none /sys/fs/cgroup/unified
fi
exec "$@"
