# `make` alone shows what there is.

OUT     := out
BIN     := $(OUT)/bin
GO      ?= go
PKGS    ?= ./...
# Tests that boot machines run one after the other, in a step of their own.
E2E := ./testenv/e2e/... ./testenv/firmware/...
NICE    := $(shell command -v nice >/dev/null && echo nice -n 5)
export CGO_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help build demo test test-full soak bench lint vet packages test-packages bench-packages images vagrant-validate clean

help: ## show this
	@echo "hotspare: bare metal with a spare tyre"
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the programs, static, into out/bin
	@mkdir -p $(BIN)
	$(GO) build -buildvcs=false -trimpath -o $(BIN)/ ./cmd/hotspare ./cmd/hotspare-lab
	$(GO) build -buildvcs=false -trimpath -ldflags '-s -w' -o $(BIN)/ ./cmd/hotspare-agent

demo: packages build ## a failover of a real database in a lab of 4 machines; KEEP=1 leaves it running, STANDBY=examples/standby.yaml has a spare wait
	@KEEP=$(KEEP) STANDBY=$(STANDBY) $(BIN)/hotspare-lab demo

packages:
	@packaging/install-packages packaging/demo-packages.txt

test-packages: packages
	@packaging/install-packages packaging/test-packages.txt

bench-packages:
	@packaging/install-packages packaging/bench-packages.txt
	@packaging/unpack-package tftpd-hpa $(OUT)/cache/bench-peers

images: packages build ## the two demo images, into out/cache
	@for image in orders web; do $(BIN)/hotspare-lab image build $$image || exit 1; done

test: test-packages build vet lint ## everything: vet, lint, all tests, the end-to-end tests on machines
	$(NICE) $(GO) test -timeout 14m $$($(GO) list ./... | grep -v -e /testenv/e2e -e /testenv/firmware)
	@if $(GO) list $(E2E) >/dev/null 2>&1; then $(NICE) $(GO) test -p 1 -count 1 -timeout 14m $(E2E); fi

test-full: test-packages build vet lint ## like test, with every end-to-end failover, the race detector and the slow tests
	HOTSPARE_TEST_FULL=1 CGO_ENABLED=1 $(NICE) $(GO) test -race -timeout 60m $$($(GO) list ./... | grep -v -e /testenv/e2e -e /testenv/firmware)
	@if $(GO) list $(E2E) >/dev/null 2>&1; then HOTSPARE_TEST_FULL=1 $(NICE) $(GO) test -p 1 -count 1 -timeout 120m $(E2E); fi

soak: ## SEEDS=20000 further seeds of the simulator, STORE=600 of the volume store beside its model, then the fuzz targets of the iSCSI target and of DHCP (FUZZ=60s each)
	$(NICE) $(GO) test -count 1 -timeout 24h -v -run ManySeeds ./testenv/sim -sim.seeds $(or $(SEEDS),20000) -sim.from $(or $(FROM),100000)
	$(NICE) $(GO) test -count 1 -timeout 24h -v -run TestStoreEqualsModel ./storage/cow -cow.seeds $(or $(STORE),600) -cow.from $(or $(FROM),100000)
	@for f in FuzzLogin FuzzFullFeature FuzzCDB FuzzReadPDU FuzzText FuzzCHAP FuzzCopyList FuzzKept; do \
	  $(NICE) $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(FUZZ),60s) -fuzzminimizetime 1s ./storage/iscsi || exit 1; done
	@for f in FuzzPacket FuzzPacket6 FuzzFrames FuzzServerAnswer FuzzOptionParts FuzzParseLeases; do \
	  $(NICE) $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(FUZZ),60s) -fuzzminimizetime 1s ./boot/dhcp || exit 1; done

bench: bench-packages build ## figures beside peers and the machine's limits, PART=storage or boot (BENCH_QUICK=1: fewer rounds)
	$(GO) build -buildvcs=false -trimpath -o $(BIN)/bench ./testenv/bench
	$(BIN)/bench -part $(or $(PART),storage)

vet: ## go vet
	$(GO) vet $(PKGS)

# The linter is built once from the module proxy, at the version in tools/go.mod.
$(OUT)/tools/golangci-lint: tools/go.mod tools/go.sum
	@mkdir -p $(OUT)/tools
	cd tools && $(GO) build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

lint: $(OUT)/tools/golangci-lint ## golangci-lint with .golangci.yml
	$(NICE) $< run $(PKGS)

vagrant-validate: ## check the Vagrantfile (needs Debian's package vagrant)
	@command -v vagrant >/dev/null || { echo "vagrant is missing; fix: apt-get install vagrant" >&2; exit 1; }
	VAGRANT_DOTFILE_PATH=$(CURDIR)/$(OUT)/vagrant vagrant validate --ignore-provider

clean: ## everything that was made, and a lab that still runs
	@if [ -x $(BIN)/hotspare-lab ] && [ -d $(OUT)/lab ]; then $(BIN)/hotspare-lab down; fi
	rm -rf $(OUT)
