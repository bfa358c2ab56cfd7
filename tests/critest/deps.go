// Package critest pins the conformance suite: go.mod names its version, and
// these imports are what its test binary needs, so that go.sum is complete.
// It is never built; `make tools` compiles sigs.k8s.io/cri-tools/cmd/critest.
package critest

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/framework"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
	_ "sigs.k8s.io/cri-tools/pkg/version"
)
