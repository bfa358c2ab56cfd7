#!/bin/bash
# Builds Kubernetes, at the version of go.mod, as one program under six names.
#
# usage: tests/kubelet/build.sh [OUT]      (OUT: build/kube of the checkout)
#
# Built again only when the module, its locks or the Go compiler changed.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../../build/kube}
mkdir -p "$out"
out=$(cd "$out" && pwd)
stamp=$(go version | cat - "$here/go.mod" "$here/go.sum" "$here/main.go" "$here/build.sh" | sha256sum)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$here/go.mod")
IFS=. read -r major minor _ <<<"${version#v}"
variables=k8s.io/component-base/version
echo "  BUILD    Kubernetes $version (minutes, once)" >&2
# What the components call themselves; the module itself does not know its version.
(cd "$here" && CGO_ENABLED=0 go build -trimpath -o "$out/kubernetes" -ldflags "-s -w \
    -X $variables.gitVersion=$version -X $variables.gitMajor=$major -X $variables.gitMinor=$minor" .)
for name in kubelet kubectl kube-apiserver kube-controller-manager kube-scheduler etcd; do
    ln -sf kubernetes "$out/$name"
done
echo "$stamp" >"$out/stamp"
