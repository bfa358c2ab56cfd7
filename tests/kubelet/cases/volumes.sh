# Volumes of all kinds that need no driver. Sourced by cluster.sh.

volumes=(config-volumes projected-volume empty-dirs sub-paths host-paths fs-group mount-propagation read-only-volumes
    image-volume)

config_volumes_case() {
    k create configmap config --from-literal key=first --from-literal env=from-config >/dev/null
    k create secret generic secret --from-literal password=hidden >/dev/null
    shell_pod config '  volumes:
  - { name: config, configMap: { name: config } }
  - { name: secret, secret: { secretName: secret, defaultMode: 0400 } }' '    volumeMounts:
    - { name: config, mountPath: /config }
    - { name: secret, mountPath: /secret, readOnly: true }
    env: [{ name: CONFIGURED, valueFrom: { configMapKeyRef: { name: config, key: env } } }]
    envFrom: [{ prefix: S_, secretRef: { name: secret } }]'
    [ "$(k exec config -- sh -c 'cat /config/key /secret/password; stat -L -c %a /secret/password; echo $CONFIGURED $S_password')" = \
        $'firsthidden400\nfrom-config hidden' ]
    k exec config -- sh -c 'mount | grep " /secret " | grep -q tmpfs'
    fails k exec config -- sh -c 'echo >/secret/new'
    k patch configmap config -p '{"data":{"key":"second"}}' >/dev/null
    # A write makes the kubelet sync the pod at once; else it looks once a minute.
    k annotate pod config look=now >/dev/null
    until_true 120 "the container sees the change" config_is second
}

config_is() { [ "$(k exec config -- cat /config/key)" = "$1" ]; }

projected_volume_case() {
    k create configmap config --from-literal key=value >/dev/null
    shell_pod projected '  volumes:
  - name: all
    projected:
      sources:
      - configMap: { name: config, items: [{ key: key, path: a/b }] }
      - downwardAPI: { items: [{ path: labels, fieldRef: { fieldPath: metadata.labels } }] }
      - serviceAccountToken: { path: token, audience: tests, expirationSeconds: 600 }' '    volumeMounts:
    - { name: all, mountPath: /all }'
    [ "$(k exec projected -- cat /all/a/b)" = value ]
    [ "$(k exec projected -- cat /all/labels)" = 'app="projected"' ]
    [ "$(k exec projected -- cat /all/token | tr -cd . | wc -c)" = 2 ]
    k exec projected -- test -s /var/run/secrets/kubernetes.io/serviceaccount/token
    k exec projected -- grep -q CERTIFICATE /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
}

empty_dirs_case() {
    shell_pod dirs '  volumes:
  - { name: disk, emptyDir: {} }
  - { name: memory, emptyDir: { medium: Memory, sizeLimit: 1Mi } }
  - { name: shm, emptyDir: { medium: Memory, sizeLimit: 80Mi } }' '    volumeMounts:
    - { name: disk, mountPath: /disk }
    - { name: memory, mountPath: /memory }
    - { name: shm, mountPath: /dev/shm }'
    k exec dirs -- sh -c 'echo kept >/disk/file'
    fails k exec dirs -- dd if=/dev/zero of=/memory/big bs=64k count=32
    [ "$(k exec dirs -- sh -c 'df -k /dev/shm | tail -1' | awk '{ print $2 }')" = $((80 * 1024)) ]
    # It outlives its container.
    k exec dirs -- sh -c 'kill -TERM 1' || true
    until_true 30 "it was restarted" pod_is dirs '.status.containerStatuses[0].restartCount' 1
    ready pod/dirs
    [ "$(k exec dirs -- cat /disk/file)" = kept ]
}

sub_paths_case() {
    k create configmap config --from-literal a.conf=content >/dev/null
    shell_pod subs '  volumes:
  - { name: config, configMap: { name: config } }
  - { name: work, emptyDir: {} }' '    env: [{ name: DIR, value: of-env }]
    volumeMounts:
    - { name: config, mountPath: /etc/a.conf, subPath: a.conf }
    - { name: work, mountPath: /one, subPath: dir/below }
    - { name: work, mountPath: /two, subPathExpr: "x-$(DIR)" }
    - { name: work, mountPath: /work }'
    [ "$(k exec subs -- cat /etc/a.conf)" = content ]
    k exec subs -- sh -c 'touch /one/1 /two/2; test -e /work/dir/below/1; test -e /work/x-of-env/2'
}

host_paths_case() {
    local dir=$SCRATCH/host-paths
    mkdir -p "$dir/there"
    touch "$dir/file"
    shell_pod paths "  volumes:
  - { name: there, hostPath: { path: $dir/there, type: Directory } }
  - { name: made, hostPath: { path: $dir/made/by/kubelet, type: DirectoryOrCreate } }
  - { name: file, hostPath: { path: $dir/file, type: File } }
  - { name: new, hostPath: { path: $dir/new, type: FileOrCreate } }
  - { name: device, hostPath: { path: /dev/null, type: CharDevice } }" '    volumeMounts:
    - { name: there, mountPath: /there }
    - { name: made, mountPath: /made }
    - { name: file, mountPath: /file }
    - { name: new, mountPath: /new }
    - { name: device, mountPath: /a-device }'
    k exec paths -- sh -c 'touch /there/x /made/y; echo z >/file; echo w >/new; test -c /a-device'
    [ -e "$dir/there/x" ]
    [ -e "$dir/made/by/kubelet/y" ]
    [ "$(cat "$dir/file" "$dir/new")" = $'z\nw' ]
    # Without a type the kubelet looks at nothing, and leaves a missing directory to the runtime.
    shell_pod untyped "  volumes: [{ name: missing, hostPath: { path: $dir/missing } }]" \
        '    volumeMounts: [{ name: missing, mountPath: /missing }]'
    k exec untyped -- touch /missing/file
    [ -e "$dir/missing/file" ]
    k run wrong --image x --restart Never --overrides "{\"spec\":{\"volumes\":[{\"name\":\"v\",\"hostPath\":{\"path\":\"$dir/file\",\"type\":\"Directory\"}}],
        \"containers\":[{\"name\":\"c\",\"image\":\"$REPO/busybox:latest\",\"volumeMounts\":[{\"name\":\"v\",\"mountPath\":\"/v\"}]}]}}" >/dev/null
    until_true 30 "the type is wrong" has_event FailedMount 'is not a directory'
}

fs_group_case() {
    shell_pod group '  securityContext: { fsGroup: 2345, runAsUser: 1000 }
  volumes: [{ name: work, emptyDir: {} }]' '    volumeMounts: [{ name: work, mountPath: /work }]'
    k exec group -- touch /work/file
    [ "$(k exec group -- stat -c %u:%g /work/file)" = 1000:2345 ]
    grep -qw 2345 <<<"$(k exec group -- id -G)"
}

mount_propagation_case() {
    local dir=/run/propagation-$NS
    mkdir -p "$dir"
    mount -t tmpfs tmpfs "$dir"
    mount --make-shared "$dir"
    k apply -f - <<YAML >/dev/null
apiVersion: v1
kind: Pod
metadata: { name: mounts }
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{ name: dir, hostPath: { path: $dir } }]
  containers:
  - name: both
    image: $REPO/busybox:latest
    command: [sleep, "1000"]
    securityContext: { privileged: true }
    volumeMounts: [{ name: dir, mountPath: /dir, mountPropagation: Bidirectional }]
  - name: follows
    image: $REPO/busybox:latest
    command: [sleep, "1000"]
    volumeMounts: [{ name: dir, mountPath: /dir, mountPropagation: HostToContainer }]
  - name: alone
    image: $REPO/busybox:latest
    command: [sleep, "1000"]
    volumeMounts: [{ name: dir, mountPath: /dir }]
YAML
    ready pod/mounts
    k exec mounts -c both -- sh -c 'mkdir /dir/inner && mount -t tmpfs tmpfs /dir/inner && touch /dir/inner/file'
    [ -e "$dir/inner/file" ]
    k exec mounts -c follows -- test -e /dir/inner/file
    fails k exec mounts -c alone -- test -e /dir/inner/file
    umount "$dir/inner"
    k delete pod mounts >/dev/null
    umount "$dir"
}

read_only_volumes_case() {
    local dir=/run/read-only-$NS
    mkdir -p "$dir/inner"
    mount -t tmpfs tmpfs "$dir/inner"
    shell_pod read "  volumes:
  - { name: dir, hostPath: { path: $dir } }" '    volumeMounts:
    - { name: dir, mountPath: /plain, readOnly: true }
    - { name: dir, mountPath: /recursive, readOnly: true, recursiveReadOnly: Enabled }'
    fails k exec read -- touch /plain/x
    k exec read -- touch /plain/inner/x
    fails k exec read -- touch /recursive/inner/y
    pod_is read '.status.containerStatuses[0].volumeMounts[] | select(.mountPath == "/recursive") | .recursiveReadOnly' Enabled
    k delete pod read >/dev/null
    umount "$dir/inner"
}

image_volume_case() {
    shell_pod image "  volumes: [{ name: web, image: { reference: $REPO/web:latest, pullPolicy: IfNotPresent } }]" \
        '    volumeMounts: [{ name: web, mountPath: /web }, { name: web, mountPath: /html, subPath: usr/share/nginx/html }]'
    k exec image -- grep -q Welcome /web/usr/share/nginx/html/index.html
    k exec image -- grep -q Welcome /html/index.html
    fails k exec image -- touch /web/x
}
