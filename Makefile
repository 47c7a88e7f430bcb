# make prints what there is to make.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

FUZZTIME ?= 20s
CHAOS_MINUTES ?= 30
SIM_HOURS ?= $(if $(SIM_SEED),,8)
SIM_SEED ?=
SIM_DIR ?=
BENCH_FLAGS ?=
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help
help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## download the modules
	go mod download

.PHONY: build
build: ## bin/holdfast
	go build -o bin/holdfast ./cmd/holdfast

.PHONY: vet
vet: ## gofmt, go vet, and that all builds without its tests
	@unformatted=$$(git ls-files '*.go' | xargs -r gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	go build ./...
	go vet ./...
	go vet -tags planted ./...

.PHONY: lint
lint: ## golangci-lint by .golangci.yml (builds it the first time: a few minutes)
	go run $(GOLANGCI_LINT) run ./...

.PHONY: test
test: ## every test, with the race detector; without the profile of `make pgo`, for which everything would be compiled twice
	go test -race -pgo=off -timeout 14m $$(go list ./... | grep -v /cluster-tests/chaos)
	@# This one runs what it builds itself, of which the cache of results knows nothing.
	go test -race -pgo=off -timeout 14m -count 1 ./cluster-tests/chaos

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s)
	@go test -list '^Fuzz' ./... | awk '/^Fuzz/ {targets[++n]=$$1} /^ok/ {for (i=1;i<=n;i++) print $$2, targets[i]; n=0}' | \
	while read -r package target; do \
		echo "== $$package $$target"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package"; \
	done

.PHONY: chaos
chaos: ## real processes under faults for CHAOS_MINUTES (30), figures into docs/reliability.md; CHAOS_KINDS=a,b and more: see there
	CHAOS_MINUTES=$(CHAOS_MINUTES) CHAOS_DIR=$${CHAOS_DIR:-$(CURDIR)/bin/chaos} CHAOS_OUT=$${CHAOS_OUT-$(CURDIR)/docs/reliability.md} \
		go test -count 1 -timeout 0 -v ./cluster-tests/chaos

.PHONY: planted
planted: ## plant bugs, one after the other, and see that the simulation finds each; also RUN='TestEvery.*/skip_dedup' PLANTED_SEED=
	go test -tags planted -count 1 -timeout 30m -v -run "$${RUN:-.}" ./cluster-tests/planted

.PHONY: sim
sim: ## clusters in virtual time under faults for SIM_HOURS (8) of it; figures into docs/reliability.md; SIM_SEED= runs one seed again, without figures; SIM_DIR= keeps all logs and histories, not those alone of seeds that fail
	SIM_HOURS=$(SIM_HOURS) SIM_SEED=$(SIM_SEED) SIM_DIR=$(SIM_DIR) SIM_OUT=$${SIM_OUT-$(if $(SIM_HOURS),$(CURDIR)/docs/reliability.md)} \
		go test -cpu $${GOMAXPROCS:-1} -parallel $${GOMAXPROCS:-1} -count 1 -timeout 0 -v -run TestSimulation ./cluster-tests/sim

.PHONY: bench
bench: ## Holdfast beside etcd and Redis on this machine, into docs/benchmarks.md (12 minutes; needs redis-server)
	cd bench && go build -o ../bin/holdfast-bench .
	cd bench && ../bin/holdfast-bench -out ../docs/benchmarks.md -shards 1 $(BENCH_FLAGS)
	cd bench && ../bin/holdfast-bench -out ../docs/benchmarks.md -shards 8 -systems holdfast $(BENCH_FLAGS)
	cd bench && ../bin/holdfast-bench -out ../docs/benchmarks.md -work sessions -shards 1 $(BENCH_FLAGS)

.PHONY: pgo
pgo: build ## profile three nodes under load, for the compiler: cmd/holdfast/default.pgo
	data=$$(mktemp -d); trap 'kill $$pid; wait; rm -rf $$data' EXIT; \
	bin/holdfast dev --nodes 3 --shards 1 --data $$data --pprof --http 127.0.0.1:17480 --grpc 127.0.0.1:17400 & pid=$$!; \
	until curl -sf http://127.0.0.1:17480/readyz; do sleep 1; done; \
	bin/holdfast policy create --name all --rate 1000000000 --window 1 --addr 127.0.0.1:17400; \
	bin/holdfast policy assign all '*' --addr 127.0.0.1:17400; \
	for work in limit-check session-validate session-create; do \
		bin/holdfast bench $$work --clients 256 --duration 25s --addr 127.0.0.1:17400 & \
		sleep 4; curl -sf -o $$data/$$work.pb 'http://127.0.0.1:17480/debug/pprof/profile?seconds=20'; wait $$!; \
	done; \
	go tool pprof -proto $$data/*.pb > cmd/holdfast/default.pgo

.PHONY: bench-log
bench-log: ## the Raft log on Pebble beside BoltDB, by number of shards
	go test -run '^$$' -bench . -benchtime 2s ./storage/raftlog/...

.PHONY: proto
proto: ## generate rpc/holdfastpb again (needs protoc, the Debian package protobuf-compiler)
	go build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
	GOBIN=$(CURDIR)/bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	go build -o bin/protoc-gen-grpc-gateway github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway
	GOBIN=$(CURDIR)/bin go install github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2@v2.33.0
	GOBIN=$(CURDIR)/bin go install github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto@v0.6.1-0.20240319094008-0393e58bdf10
	go run ./rpc/proto/googleapi bin/googleapi.binpb
	PATH=$(CURDIR)/bin:$$PATH protoc -I rpc/proto --descriptor_set_in=bin/googleapi.binpb \
		--go_out=. --go_opt=module=github.com/holdfastdb/holdfast \
		--go-grpc_out=. --go-grpc_opt=module=github.com/holdfastdb/holdfast \
		--grpc-gateway_out=. --grpc-gateway_opt=module=github.com/holdfastdb/holdfast \
		--openapiv2_out=rpc/openapi --openapiv2_opt=allow_merge=true,merge_file_name=holdfast,json_names_for_fields=false \
		$$(cd rpc/proto && ls holdfast/v1/*.proto)
	PATH=$(CURDIR)/bin:$$PATH protoc -I rpc/proto --descriptor_set_in=bin/googleapi.binpb \
		--go-vtproto_out=. --go-vtproto_opt=module=github.com/holdfastdb/holdfast \
		--go-vtproto_opt=features=marshal+size+unmarshal_unsafe+pool \
		$(foreach m,CheckResponse LimitState HeldValidation HeldSession SessionProfile,--go-vtproto_opt=pool=github.com/holdfastdb/holdfast/rpc/holdfastpb.$(m)) \
		holdfast/v1/data.proto holdfast/v1/limit.proto holdfast/v1/packedframe.proto holdfast/v1/sessionframe.proto
	# Not unmarshal: what others send has values in values, and the library alone bounds their depth.
	PATH=$(CURDIR)/bin:$$PATH protoc -I rpc/proto --descriptor_set_in=bin/googleapi.binpb \
		--go-vtproto_out=. --go-vtproto_opt=module=github.com/holdfastdb/holdfast \
		--go-vtproto_opt=features=marshal+size \
		holdfast/v1/session.proto
