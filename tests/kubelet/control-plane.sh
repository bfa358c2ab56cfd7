# Certificates and flags of a control plane of one node on loopback. Sourced.
#
#   certificates              writes them to PKI, with kubeconfigs that need no other file
#   servers, controllers      call `component NAME FLAGS...`, which the sourcing script has
#
# NODE_NAME and NODE_IP are the node's. PKI and ETCD_DATA are directories.

PKI=${PKI:-/run/pki}
ETCD_DATA=${ETCD_DATA:-/run/etcd}
APISERVER=https://127.0.0.1:6443

# certificate NAME SUBJECT [EXTENSIONS]
certificate() {
    openssl req -new -newkey rsa:2048 -nodes -keyout "$PKI/$1.key" -subj "$2" 2>/dev/null |
        openssl x509 -req -days 2 -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -out "$PKI/$1.crt" \
            -extfile <(echo "${3:-extendedKeyUsage = clientAuth}") 2>/dev/null
    local config=(kubectl config --kubeconfig "$PKI/$1.conf")
    "${config[@]}" set-cluster here --server "$APISERVER" --embed-certs --certificate-authority "$PKI/ca.crt" >/dev/null
    "${config[@]}" set-credentials "$1" --embed-certs --client-certificate "$PKI/$1.crt" \
        --client-key "$PKI/$1.key" >/dev/null
    "${config[@]}" set-context here --cluster here --user "$1" >/dev/null
    "${config[@]}" use-context here >/dev/null
}

certificates() {
    mkdir -p "$PKI"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout "$PKI/ca.key" -out "$PKI/ca.crt" -subj /CN=ca 2>/dev/null
    openssl genrsa -out "$PKI/accounts.key" 2048 2>/dev/null
    certificate apiserver /CN=apiserver "extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, IP:10.97.0.1, DNS:kubernetes.default.svc"
    certificate admin /O=system:masters/CN=admin
    certificate manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate kubelet "/O=system:nodes/CN=system:node:$NODE_NAME"
}

servers() {
    component etcd --data-dir "$ETCD_DATA" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
        --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
    component kube-apiserver --etcd-servers http://127.0.0.1:2379 --bind-address 127.0.0.1 \
        --advertise-address "$NODE_IP" --service-cluster-ip-range 10.97.0.0/24 \
        --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" --client-ca-file "$PKI/ca.crt" \
        --kubelet-client-certificate "$PKI/admin.crt" --kubelet-client-key "$PKI/admin.key" \
        --service-account-key-file "$PKI/accounts.key" --service-account-signing-key-file "$PKI/accounts.key" \
        --service-account-issuer https://kubernetes.default.svc --authorization-mode Node,RBAC \
        --enable-admission-plugins NodeRestriction --allow-privileged \
        --kubelet-preferred-address-types InternalIP
}

controllers() {
    component kube-controller-manager --kubeconfig "$PKI/manager.conf" --leader-elect=false \
        --service-account-private-key-file "$PKI/accounts.key" --root-ca-file "$PKI/ca.crt" \
        --use-service-account-credentials
    component kube-scheduler --kubeconfig "$PKI/scheduler.conf" --leader-elect=false
}
