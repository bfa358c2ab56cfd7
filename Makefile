# podwright: build, try, test. `make help` lists the targets.
#
# Works on a fresh Debian 12 with Rust, Go and apt, as root. Everything that is
# made stands in build/ and target/; `make clean` removes build/ only.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

BIN := $(CURDIR)/build/bin
TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
CRI_TOOLS := $(shell awk '$$1 == "require" && $$2 == "sigs.k8s.io/cri-tools" { print $$3 }' tests/critest/go.mod)
CARGO_DENY := 0.20.2
CARGO_DEB := 3.8.0
# The daemon under test must find the monitor that `build` made.
export PODWRIGHT_MONITOR := $(BIN)/podwright-monitor

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that are missing (apt, root)
	@scripts/deps.sh

.PHONY: tools
tools: $(BIN)/crictl $(BIN)/critest ## Build crictl and critest at the version of tests/critest/go.mod

$(BIN)/crictl: tests/critest/go.mod
	GOBIN=$(BIN) CGO_ENABLED=0 go install -ldflags '-X sigs.k8s.io/cri-tools/pkg/version.Version=$(CRI_TOOLS)' \
		sigs.k8s.io/cri-tools/cmd/crictl@$(CRI_TOOLS)
	@touch $@

$(BIN)/critest: tests/critest/go.mod tests/critest/go.sum
	@mkdir -p $(BIN)
	cd tests/critest && CGO_ENABLED=0 go test -c -o $@ \
		-ldflags '-X sigs.k8s.io/cri-tools/pkg/version.Version=$(CRI_TOOLS)' sigs.k8s.io/cri-tools/cmd/critest
	@touch $@

# Its sources are few, and go's own cache knows whether they changed.
.PHONY: streaming-client
streaming-client: ## Build the test client made of k8s.io/client-go
	cd tests/streaming-client && CGO_ENABLED=0 go build -o $(BIN)/streaming-client .

.PHONY: images
images: ## Build the static programs of the stand-in images (busybox from Debian's source)
	@tests/images/build.sh build/images

.PHONY: build
build: monitor ## Build the daemon (release) and the static pod monitor into build/bin
	cargo build --release --locked
	@install -D target/release/podwright $(BIN)/podwright

# The monitor lives once per pod: static, without relocations, in its own target
# directory so that its flags do not rebuild everything else.
.PHONY: monitor
monitor: ## Build only the pod monitor
	RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --locked --profile monitor \
		-p podwright-monitor --target $(TRIPLE) --target-dir build/monitor-target
	@install -D build/monitor-target/$(TRIPLE)/monitor/podwright-monitor $(BIN)/podwright-monitor

.PHONY: testkit
testkit: ## Build the test kit's command line
	cargo build --locked -p podwright-testkit
	@install -D target/debug/podwright-testkit $(BIN)/podwright-testkit

.PHONY: run
run: deps build testkit tools images ## Try it: a throw-away node runs a web pod, step by step (SERVE=1 keeps it up)
	@scripts/run.sh

.PHONY: test
test: ## All checks in order: commits, fmt, lint, unit, proto-check, e2e, critest
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory commits
	@$(MAKE) --no-print-directory fmt
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory proto-check
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory critest

.PHONY: commits
commits: ## Check the subjects of new commits
	scripts/commits.sh

.PHONY: fmt
fmt: ## Check the formatting (`cargo fmt --all` corrects it)
	cargo fmt --all -- --check
	rustfmt --check --edition 2024 fuzz/targets/*.rs

.PHONY: lint
lint: ## clippy on everything, warnings are errors
	cargo clippy --workspace --all-targets --locked -- -D warnings
	# Nothing else compiles the fuzz targets.
	@cp Cargo.lock fuzz/Cargo.lock
	RUSTFLAGS='--cfg fuzzing' cargo check --manifest-path fuzz/Cargo.toml --target-dir build/fuzz-check

.PHONY: unit
unit: ## Tests beside the code, of all crates
	cargo test --workspace --lib --bins --locked

.PHONY: proto-check
proto-check: ## Check our copy of the CRI contract against its source
	tests/proto-check/run.sh

.PHONY: e2e
e2e: build images streaming-client ## Integration tests: the real daemon on scratch nodes
	cargo test --locked --workspace --test '*'

.PHONY: critest
critest: build testkit tools images ## The Kubernetes CRI conformance suite
	tests/critest/suite.sh

# Not part of `test`: it takes minutes. A short one is among the tests of `e2e`.
SOAK_SESSIONS := 10000
.PHONY: soak
soak: build images streaming-client ## Thousands of streaming sessions (SOAK_SESSIONS), of which nothing may stay
	PODWRIGHT_SOAK_SESSIONS=$(SOAK_SESSIONS) cargo test --locked --test node streams_many:: -- --nocapture --test-threads 1

# Not part of `test`: an emulated machine is slow. It has systemd, cgroup v2 and AppArmor; a second one has SELinux.
.PHONY: test-vm
test-vm: deb testkit tools images streaming-client kubernetes ## All on cgroup v2 and systemd, in emulated guests, most of an hour (STEPS, FILTER, FOCUS)
	@scripts/deps.sh qemu-system-x86 mmdebstrap e2fsprogs
	tests/vm/run.sh
	$(if $(STEPS),,STEPS='selinux critest:runc:systemd' FOCUS=SELinux tests/vm/run.sh)

# What only such a machine shows, in minutes.
.PHONY: test-vm-short
test-vm-short: build testkit tools images streaming-client ## The part of test-vm that CI runs
	@scripts/deps.sh qemu-system-x86 mmdebstrap e2fsprogs
	STEPS='critest:runc:systemd node:crun:systemd' FOCUS='AppArmor|UserNamespaces' FILTER='apparmor:: userns:: usage:: limits_ stats::' tests/vm/run.sh

# Not part of `test` either: Kubernetes takes minutes to build, once.
.PHONY: test-kubelet
test-kubelet: build testkit tools images kubernetes ## A real kubelet and control plane on podwright (CASES, LOGS in build/kubelet)
	@scripts/deps.sh openssl
	set -f; tests/kubelet/run.sh $(if $(CASES),cluster $(CASES))

.PHONY: kubernetes
kubernetes: ## Build kubelet, control plane, etcd and kubectl at the version of tests/kubelet/go.mod
	@tests/kubelet/build.sh
.PHONY: docs
docs: ## Write the generated tables of the documents from the code
	PODWRIGHT_WRITE_DOCS=1 cargo test --locked --quiet --test docs generated_ >/dev/null

.PHONY: deb
deb: build ## Build the Debian package into build/dist (builds cargo-deb once)
	@$(MAKE) --no-print-directory deb-of-bin

# Of what is in build/bin, whatever it is.
.PHONY: deb-of-bin
deb-of-bin: $(BIN)/cargo-deb
	@rm -rf build/deb && mkdir -p build/deb build/dist
	@cp deploy/deb/postinst deploy/deb/prerm build/deb/
	@sed -e '/^#LEFTOVERS#$$/{' -e 'r deploy/leftovers.sh' -e 'd' -e '}' deploy/deb/postrm >build/deb/postrm
	$(BIN)/cargo-deb --locked --no-build --no-strip --output build/dist/

$(BIN)/cargo-deb:
	cargo install --locked --quiet --root $(CURDIR)/build --target-dir build/cargo-deb-target cargo-deb@$(CARGO_DEB)
	@rm -rf build/cargo-deb-target

# glibc's static form. Only the last step differs from `build`: the program is linked again.
.PHONY: static
static: build ## Link the daemon static, into build/static
	cargo rustc --release --locked --bin podwright -- -C target-feature=+crt-static
	@install -D target/release/podwright build/static/podwright
	@! ldd build/static/podwright 2>/dev/null | grep -F '=>'

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
RELEASE := podwright-$(VERSION)-linux-$(firstword $(subst -, ,$(TRIPLE)))

.PHONY: dist
dist: static monitor ## Build the static tarball into build/dist; its Makefile has install, uninstall and purge
	@$(MAKE) --no-print-directory dist-of DAEMON=build/static/podwright

.PHONY: dist-of
dist-of:
	@rm -rf build/dist/$(RELEASE) && mkdir -p build/dist/$(RELEASE)/bin
	@install -m 0755 $(DAEMON) $(BIN)/podwright-monitor build/dist/$(RELEASE)/bin/
	@cp -r deploy docs LICENSE README.md CHANGELOG.md build/dist/$(RELEASE)/
	@cp deploy/Makefile.dist build/dist/$(RELEASE)/Makefile && rm build/dist/$(RELEASE)/deploy/Makefile.dist
	@tar -c -z --owner=0 --group=0 --sort=name -C build/dist -f build/dist/$(RELEASE).tar.gz $(RELEASE)
	@rm -rf build/dist/$(RELEASE)
	@ls -l build/dist/$(RELEASE).tar.gz

.PHONY: install
install: ## Install what is in build/bin (PREFIX, DESTDIR); uninstall and purge undo it
	@deploy/install.sh install

.PHONY: uninstall purge
uninstall purge:
	@deploy/install.sh $@

.PHONY: test-deploy
test-deploy: deb dist testkit tools images ## The files of deploy/: Debian package, tarball, Prometheus
	tests/deploy/package.sh build/dist/podwright_*.deb build/dist/$(RELEASE).tar.gz
	tests/deploy/prometheus.sh

.PHONY: bench
bench: build testkit tools images streaming-client ## Measure against Debian's containerd: pods, pulls (PULLS=0 leaves them out), streams
	@scripts/deps.sh containerd skopeo umoci
	tests/bench/run.sh
	[ "$${PULLS:-3}" = 0 ] || tests/bench/pull.sh --pulls $${PULLS:-3}
	tests/bench/streams.sh

.PHONY: bench-trouble
bench-trouble: build testkit tools images ## Measure status and list calls with 200 pods, a hung CNI plugin and a container that does not die
	tests/bench/trouble.sh

.PHONY: deny
deny: $(BIN)/cargo-deny ## Check licences, bans and sources of the dependencies (builds cargo-deny once)
	$(BIN)/cargo-deny --locked check bans licenses sources

$(BIN)/cargo-deny:
	cargo install --locked --quiet --root $(CURDIR)/build --target-dir build/cargo-deny-target cargo-deny@$(CARGO_DENY)
	@rm -rf build/cargo-deny-target

# Coverage by rustc's own flags, so that the pinned stable toolchain does; they are those of cargo-fuzz.
FUZZ_SECONDS := 20
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/targets/*.rs)))
FUZZ_FLAGS := --cfg fuzzing -C passes=sancov-module -C codegen-units=1 -C llvm-args=-sanitizer-coverage-level=4 \
	-C llvm-args=-sanitizer-coverage-trace-compares -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
	-C llvm-args=-sanitizer-coverage-pc-table

.PHONY: fuzz
fuzz: ## Feed hostile bytes to each parser for a while (FUZZ_SECONDS, FUZZ_TARGETS)
	@scripts/deps.sh g++
	@cp Cargo.lock fuzz/Cargo.lock
	RUSTFLAGS='$(FUZZ_FLAGS)' cargo build --release --manifest-path fuzz/Cargo.toml \
		--target $(TRIPLE) --target-dir build/fuzz-target
	@for target in $(FUZZ_TARGETS); do \
		fuzz/run.sh build/fuzz-target/$(TRIPLE)/release/$$target fuzz/seeds/$$target $(FUZZ_SECONDS); \
	done

.PHONY: sweep
sweep: testkit ## Remove what killed test runs have left on this machine
	$(BIN)/podwright-testkit sweep

.PHONY: clean
clean: ## Remove build/
	rm -rf build
