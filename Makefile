# worknode: two commands for users (run, test), a few for developers.
# Everything that a target needs is installed by scripts/setup or built by Go; only Go, git, make, gcc and apt are assumed.
SHELL := /bin/bash
.DEFAULT_GOAL := build
export CGO_ENABLED := 0
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X worknode/version.Build=$(VERSION)

.PHONY: build run test test-vm test-long quick bench bench-runtime bench-proxy lint fmt clean setup

build:
	@go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

setup:
	@./scripts/setup

run: setup build
	@./scripts/run

test: setup build
	@./scripts/test

# All of it, and the suites that touch the kernel once more on cgroup v2 in an emulated machine.
test-vm: setup build
	@WORKNODE_VM=1 ./scripts/test

test-long: setup build
	@./scripts/test-long

quick:
	@go vet ./... && go test ./fault ./task ./kube ./kubelet/plan/... ./proxy/plan/... ./runtime/plan/... ./defaults ./validate ./test/walls

bench: setup build
	@./scripts/bench

bench-runtime: setup build
	@./scripts/bench-runtime

bench-proxy: setup build
	@./scripts/bench-proxy $(ARGS)

.PHONY: cluster cluster-down control-plane
# A real control plane (upstream's) in a network of its own, with NODES nodes of this tree; prints a kubeconfig.
cluster: setup build
	@./scripts/kubernetes
	@./scripts/test-images
	@./example/build.sh
	@go build -o .cache/cluster/cluster ./tools/cluster
	@.cache/cluster/cluster up -nodes $(or $(NODES),1)

# A machine with nothing but worknode, which runs that control plane as static pods and joins it.
control-plane: setup build
	@./scripts/kubernetes
	@./scripts/test-images
	@go build -o .cache/cluster/cluster ./tools/cluster
	@.cache/cluster/cluster self

cluster-down:
	@go build -o .cache/cluster/cluster ./tools/cluster
	@.cache/cluster/cluster down

lint:
	@./scripts/lint

fmt:
	@gofmt -s -w $$(git ls-files '*.go')

clean:
	@rm -rf bin .cache example/images
