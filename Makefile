# Sandbox Egress. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
BIN     := $(CURDIR)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
BINARIES := manager egress-proxy egress-relay egressctl sandbox-api

# Packages that need a kube-apiserver and etcd (KUBEBUILDER_ASSETS).
ENVTEST_PKGS := ./api/... ./controllers/... ./internal/webhook/... ./internal/policy/kube/... ./internal/managercmd/... ./test/chart/install
# Packages that need a cluster, root, or minutes of peers: they have targets of their own.
OWN_TARGET   := /test/(e2e|cluster/node|perf/sandboxapi)

# What generate and manifests write.
GENERATED    := api config charts/sandbox-egress/files docs/api.md

FUZZTIME ?= 30s
IMAGE    ?= sandbox-egress:$(VERSION)

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Tools, built from the pinned modules under hack/tools
$(BIN)/%: hack/tools/%/go.mod hack/tools/%/go.sum
	@mkdir -p $(BIN)
	@echo "building $*"
	@cd hack/tools/$* && $(GO) build -trimpath -o $@ tool

.PHONY: build
build: ## Build all binaries into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./cmd/,$(BINARIES))

.PHONY: generate
generate: $(BIN)/controller-gen $(BIN)/crd-ref-docs ## Generate deepcopy, apply configurations and the API reference
	$(BIN)/controller-gen object applyconfiguration paths=./api/...
	$(BIN)/crd-ref-docs --source-path=./api/v1alpha1 --config=hack/crd-ref-docs.yaml --renderer=markdown --output-path=docs/api.md

.PHONY: manifests
manifests: $(BIN)/controller-gen ## Generate CRD and RBAC, and copy them into the chart
	$(BIN)/controller-gen crd paths=./api/... output:crd:artifacts:config=config/crd/bases
	$(BIN)/controller-gen rbac:roleName=sandbox-egress-manager paths=./controllers/... output:rbac:artifacts:config=config/rbac
	hack/chart.sh

.PHONY: verify-generated
verify-generated: generate manifests ## Fail when generated files are not current
	@if ! git diff --exit-code --stat -- $(GENERATED) || [ -n "$$(git ls-files --others --exclude-standard -- $(GENERATED))" ]; then \
	  echo "generated files are not current: run 'make generate manifests' and commit the result" >&2; exit 1; fi

.PHONY: fmt
fmt: $(BIN)/golangci-lint ## Format the code
	$(BIN)/golangci-lint fmt

.PHONY: lint
lint: $(BIN)/golangci-lint verify-generated ## Lint, and check that generated files are current
	$(BIN)/golangci-lint run ./...
	$(GO) mod tidy -diff

##@ Tests
.PHONY: test
test: test-unit test-envtest test-e2e ## Unit, envtest and e2e tests

.PHONY: packages
packages:
	@hack/packages.sh gcc:gcc ip:iproute2 nsenter:util-linux git:git

.PHONY: test-unit
test-unit: packages $(BIN)/helm ## Unit tests and attack vectors
	$(GO) test -race -timeout 15m $$($(GO) list ./... | grep -vE '$(OWN_TARGET)' | grep -vxF "$$($(GO) list $(ENVTEST_PKGS))")

.PHONY: test-envtest
test-envtest: packages $(BIN)/helm ## Tests against a real kube-apiserver; honours KUBEBUILDER_ASSETS
	@assets="$${KUBEBUILDER_ASSETS:-}"; \
	if [ -z "$$assets" ]; then assets=$$($(GO) run ./test/cluster build --only envtest --print-dir); fi; \
	KUBEBUILDER_ASSETS="$$assets" $(GO) test -race -p 1 -timeout 20m $(ENVTEST_PKGS)

.PHONY: test-e2e
test-e2e: packages $(BIN)/helm ## End-to-end tests in a single-node cluster (root; KEEP=1 leaves it up)
	$(GO) run ./test/cluster build
	cd test/cluster/components/enforcer && $(GO) vet . && $(GO) test -race .
	$(GO) test -race -p 1 -timeout 20m -v ./test/cluster/node ./test/e2e/platform
	$(GO) test -timeout 40m ./test/e2e -v -ginkgo.v -ginkgo.no-color

.PHONY: demo
demo: $(BIN)/helm ## The main job on an embedded cluster; ends with a table (root; KEEP=1 leaves it up)
	$(GO) run ./test/cluster build
	KEEP=$(KEEP) $(GO) run ./test/demo

.PHONY: clients
clients: ## The matrix of real clients; writes docs/clients.md (root)
	$(GO) run ./test/clients

.PHONY: bench
bench: ## Benchmarks, with Squid side by side; writes docs/performance.md
	$(GO) test -run '^$$' -bench . -benchmem ./internal/... ./test/perf/sandboxapi
	$(GO) run ./test/perf

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME
	FUZZTIME=$(FUZZTIME) hack/fuzz.sh

##@ Release
.PHONY: image
image: ## Build the container image with Docker
	docker build --build-arg VERSION=$(VERSION) -t $(IMAGE) .

.PHONY: helm-package
helm-package: $(BIN)/helm ## Package the chart into dist/
	$(BIN)/helm package charts/sandbox-egress -d dist
