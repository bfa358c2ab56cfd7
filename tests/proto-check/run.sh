#!/bin/sh
# Compares proto/api.proto with k8s.io/cri-api. Needs cargo, go and, the first time, the Go module proxy.
# Exit code: 0 identical, 1 differences (listed), other: the check itself failed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
descriptors=$(mktemp)
trap 'rm -f "$descriptors" "$descriptors.check"' EXIT

cargo run --quiet --locked --manifest-path "$here/../../Cargo.toml" --example cri-descriptors >"$descriptors"

cd "$here"
go vet ./...
go test ./...
go list -m k8s.io/cri-api
# Built first: `go run` would report every failure as exit code 1.
go build -o "$descriptors.check" .
"$descriptors.check" "$descriptors"
