#!/bin/bash
# The end-to-end tests and the conformance suite on a machine as users have one:
# Debian's kernel, systemd as process 1, cgroup v2 alone. It is a QEMU guest
# (emulated: no KVM is needed), made of Debian's packages only, without network.
#
# usage: tests/vm/run.sh             the suite of tests/node with crun, critest with runc, both with systemd's
#                                    cgroups, then the Debian package (the suite with runc, which is slow
#                                    here: STEPS=node:runc:systemd)
#        STEPS='node:crun' tests/vm/run.sh      only these steps, in this order;
#                                    a step is node:RUNTIME[:DRIVER], critest:RUNTIME[:DRIVER]
#                                    (cgroupfs or systemd; youki is what this machine has in PATH),
#                                    deb (the Debian package of build/dist, with a reboot), selinux
#                                    (labels, in a guest of its own with SELinux permissive; critest's
#                                    SELinux specs: STEPS='selinux critest:runc' FOCUS=SELinux), or
#                                    script:FILE, a script beside this one to look into something
#        FILTER='oom exec_sync'      only tests of tests/node with one of these in their names
#        FOCUS=Security              only critest's specs that match
#        VM_SUITE=bookworm           another Debian than trixie
#        VM_ACCEL=kvm                on a machine that has KVM
#        VM_LIMIT=7200               seconds after which the guest is killed
#        VM_OPTIONAL=1               no failure where the guest's system cannot be made
#
# Kept for the next run: build/vm/base-*.ext4, the guest's system, and the same
# for SELinux, build/vm/selinux-*.ext4 (remove them to get Debian's updates). The
# guest's console and the tests' output stay in build/vm/{console,tests}.log.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
vm=$root/build/vm
started=$SECONDS

STEPS=${STEPS:-node:crun:systemd critest:runc:systemd deb}
# Debian 13 has a kernel that maps ids on tmpfs, where /run is: pods with user namespaces need it.
suite=${VM_SUITE:-trixie}
# What the guest has: the daemon's needs, the tests' needs, nothing else.
packages=systemd-sysv,dbus,kmod,apparmor,runc,crun,containernetworking-plugins,iptables,conntrack
packages+=,iproute2,procps,util-linux,docker-registry,jq,curl,e2fsprogs,xfsprogs,faketime,criu
# crun loads it where it is there.
[ "$suite" = bookworm ] || packages+=,libcriu2
# One major security module at a time: Debian's kernel starts AppArmor unless told otherwise.
module=base lsm=
case " $STEPS " in
*' selinux '*)
    module=selinux lsm='security=selinux selinux=1'
    packages+=,selinux-policy-default,selinux-utils,policycoreutils,attr
    ;;
esac

work='' qemu='' tail='' made=''
finish() {
    local code=$?
    trap '' INT TERM
    # Only what this run started; QEMU also dies with its parent (pdeathsig).
    [ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null || true
    [ -z "$tail" ] || kill -KILL "$tail" 2>/dev/null || true
    wait 2>/dev/null || true
    [ -z "$work" ] || rm -rf "$work"
    if [ $code != 0 ] && [ -n "${VM_OPTIONAL:-}" ] && [ -z "$made" ]; then
        echo "test-vm: NOT RUN: the guest's system could not be made"
        code=0
    fi
    echo "test-vm: $((SECONDS - started)) s in all, exit $code"
    exit $code
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$vm"
work=$(mktemp -d "$vm/work.XXXXXX")

# make_base  the guest's system from packages: kernel, initramfs, root file system.
make_base() {
    echo "test-vm: making the guest's system ($suite)"
    # In a mount namespace of its own: whatever happens, no mount stays on this machine.
    # The kernel is unpacked, not installed: its scripts would make an initramfs of their own.
    TMPDIR=$work unshare --mount mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
        --customize-hook='chroot "$1" sh -ec "$PODWRIGHT_VM_KERNEL"' \
        "$suite" "$work/rootfs" </dev/null
    dpkg-deb -x "$work"/rootfs/kernel/linux-image-*.deb "$work/kernel"
    rm -r "$work/rootfs/kernel"
    # Debian 12 has them below /lib.
    local version modules=$work/kernel/usr/lib/modules
    [ -d "$modules" ] || modules=$work/kernel/lib/modules
    version=$(ls "$modules")
    mkdir -p "$work/rootfs/lib/modules"
    cp -a "$modules/." "$work/rootfs/lib/modules/"
    chroot "$work/rootfs" depmod "$version"
    # A machine that has been set up: no questions at the first boot.
    tr -d - </proc/sys/kernel/random/uuid >"$work/rootfs/etc/machine-id"
    echo podwright-vm >"$work/rootfs/etc/hostname"
    printf '127.0.0.1 localhost podwright-vm\n' >"$work/rootfs/etc/hosts"
    cat >"$work/rootfs/etc/systemd/system/podwright-test.service" <<'UNIT'
[Unit]
Description=podwright's tests
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate

[Service]
Type=oneshot
TimeoutStartSec=infinity
# Processes of the tests share this unit; pods lie beside it, below cgroups of their own.
Delegate=yes
TasksMax=infinity
# The second disk is a tar archive of the checkout's programs, at the same paths as on the host.
ExecStart=/bin/bash -c 'stty -F /dev/ttyS1 raw -echo; tar -x -C / -f /dev/vdb && exec /etc/podwright-vm/start'
StandardInput=null
StandardOutput=file:/dev/ttyS1
StandardError=inherit
UNIT
    rm -rf "$work/rootfs/var/cache/apt" "$work/rootfs/var/lib/apt/lists"
    if [ $module = selinux ]; then
        printf 'SELINUX=permissive\nSELINUXTYPE=default\n' >"$work/rootfs/etc/selinux/config"
        # Labels are attributes of files that any kernel can write; the file system's image keeps them.
        cp "$here/container.cil" "$work/rootfs/root/"
        # setfiles names files by way of /proc.
        unshare --mount sh -ec 'mount -t proc proc "$1/proc"
            # Debian 13 has the types for containers itself.
            [ -e "$1/var/lib/selinux/default/active/modules/100/container" ] ||
                chroot "$1" semodule -n -s default -i /root/container.cil
            chroot "$1" setfiles -F -e /proc /etc/selinux/default/contexts/files/file_contexts /' - "$work/rootfs"
    fi
    # Debian's kernel has its disk drivers as modules: an initramfs of busybox that loads them.
    local early=$work/initramfs
    mkdir -p "$early"/{bin,proc,sys,dev,root,modules}
    cp "$(command -v busybox)" "$early/bin/busybox"
    ln -s busybox "$early/bin/sh"
    {
        printf '%s\n' '#!/bin/sh' 'PATH=/bin' 'busybox mount -t devtmpfs dev /dev'
        for name in virtio_pci virtio_blk; do
            chroot "$work/rootfs" modprobe -S "$version" --show-depends "$name"
        done | while read -r word file _; do
            [ "$word" = insmod ] || continue
            cp "$work/rootfs$file" "$early/modules/"
            # Each once, in the order that modprobe gives.
            echo "[ -e /loaded.${file##*/} ] || busybox insmod /modules/${file##*/}; busybox touch /loaded.${file##*/}"
        done
        printf '%s\n' 'while [ ! -b /dev/vda ]; do busybox usleep 10000; done' \
            'busybox mount -t ext4 /dev/vda /root' 'busybox mount --move /dev /root/dev' \
            'exec busybox switch_root /root /sbin/init'
    } >"$early/init"
    chmod 755 "$early/init"
    (cd "$early" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"
    truncate -s 4G "$work/ext4"
    mkfs.ext4 -q -F -L podwright-vm -O ^has_journal -d "$work/rootfs" "$work/ext4"
    rm -f "$vm/$module-$suite"-*
    cp "$work/kernel/boot/vmlinuz-$version" "$base.vmlinuz"
    mv "$work/initrd" "$base.initrd"
    mv "$work/ext4" "$base.ext4"
    rm -rf "$work/rootfs" "$work/kernel" "$work/initramfs"
}
# In the guest's root, while apt's lists are there.
export PODWRIGHT_VM_KERNEL='mkdir /kernel; cd /kernel
    apt-get -qq -o APT::Sandbox::User=root download "$(apt-cache depends linux-image-cloud-amd64 |
        sed -n "s/.*Depends: \(linux-image-[0-9].*\)/\1/p" | head -n 1)"'
base=$vm/$module-$suite-$({ declare -f make_base; echo "$packages $suite $PODWRIGHT_VM_KERNEL"; cat "$here/container.cil"; } | sha256sum | cut -c1-12)
[ -e "$base.ext4" ] || make_base
made=1

# The programs under test and what drives them, at the paths that are compiled into them.
reboot=-no-reboot
tests=
case "$STEPS" in
*node:*)
    tests=$(cargo test --locked --no-run --message-format=json --test node 2>"$work/cargo.log" |
        jq -r 'select(.reason == "compiler-artifact" and .target.name == "node" and .executable != null) | .executable') ||
        { cat "$work/cargo.log" >&2; exit 1; }
    ;;
esac
payload=$work/payload
mkdir -p "$payload$root/build/bin" "$payload$root/build/images" "$payload/etc/podwright-vm"
cp "$root"/build/bin/{podwright,podwright-monitor,podwright-testkit,streaming-client,crictl,critest} "$payload$root/build/bin/"
[ -z "$tests" ] || strip -o "$payload$root/build/bin/node-tests" "$tests"
cp -a "$root/build/images/." "$payload$root/build/images/"
# Debian has no youki: it is this machine's.
case "$STEPS" in
*:youki*)
    mkdir -p "$payload/usr/local/bin"
    cp "$(command -v youki)" "$payload/usr/local/bin/"
    ;;
esac
case " $STEPS " in
*' deb '*)
    mkdir -p "$payload$root/build/dist"
    cp "$root"/build/dist/podwright_*.deb "$payload$root/build/dist/"
    # Kubernetes, where somebody has built it.
    if [ -x "$root/build/kube/kubelet" ]; then
        cp -a "$root/build/kube" "$payload$root/build/"
        (
            PATH=$root/build/kube:$PATH PKI=$payload/etc/podwright-vm/pki NODE_NAME=podwright-vm
            source "$root/tests/kubelet/control-plane.sh"
            certificates
        )
    fi
    reboot=
    ;;
esac
mkdir "$payload$root/tests"
cp -a "$root"/tests/{critest,e2e,images,kubelet,vm} "$payload$root/tests/"
{
    printf '#!/bin/bash\n'
    printf 'export STEPS=%q FILTER=%q FOCUS=%q\n' "$STEPS" "${FILTER:-}" "${FOCUS:-}"
    printf 'exec %q\n' "$here/guest.sh"
} >"$payload/etc/podwright-vm/start"
chmod 755 "$payload/etc/podwright-vm/start"
tar -c -C "$payload" -f "$work/payload.tar" .
# A disk is a whole number of blocks; tar pads to more than that already.
rm -rf "$payload"

accel=${VM_ACCEL:-tcg}
if [ "$accel" = tcg ]; then accel=tcg,thread=multi cpu=max,la57=off; else cpu=host; fi
: >"$vm/console.log"
: >"$vm/tests.log"
echo "test-vm: booting ${base##*/} ($accel)"
setpriv --pdeathsig KILL qemu-system-x86_64 -nodefaults -no-user-config $reboot -display none \
    -machine pc -accel "$accel" -cpu "$cpu" -smp 2 -m 4096 \
    -kernel "$base.vmlinuz" -initrd "$base.initrd" \
    -append "console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on systemd.unit=podwright-test.service systemd.mask=apt-daily.timer systemd.mask=apt-daily-upgrade.timer systemd.mask=systemd-networkd-wait-online.service $lsm quiet" \
    -drive "file=$base.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe" \
    -drive "file=$work/payload.tar,format=raw,if=virtio,readonly=on" \
    -serial "file:$vm/console.log" -serial "file:$vm/tests.log" </dev/null &
qemu=$!
tail --pid="$qemu" -n +1 -s 0.5 -f "$vm/tests.log" &
tail=$!

deadline=$((SECONDS + ${VM_LIMIT:-7200}))
while kill -0 "$qemu" 2>/dev/null; do
    if [ $SECONDS -gt $deadline ]; then
        echo "test-vm: the guest still runs after ${VM_LIMIT:-7200} s"
        break
    fi
    sleep 1 &
    wait $! || true
done
[ $SECONDS -gt $deadline ] || wait "$qemu" || true
qemu=''
wait "$tail" 2>/dev/null || true
tail=''
if ! grep -q '^test-vm: all passed' "$vm/tests.log"; then
    if ! grep -q '^test-vm: failed' "$vm/tests.log"; then
        echo "test-vm: the guest ended without a result; its console ends with:"
        tail -n 40 "$vm/console.log"
    fi
    exit 1
fi
