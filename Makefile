# Short verbs; the logic is in scripts/ and in Rust. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

.PHONY: help run run-enterprise test lint fmt bench bench-save bench-peers flamegraph loadtest conformance chaos fuzz docker clean deps-test deps-conformance deps-peers lint-tools audit

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Build in release and start a development gateway (config/dev.toml)
	@scripts/run.sh dev

run-enterprise: ## Start the enterprise tier on this node, production-like (no TLS without SSL_CERT_PATH and SSL_KEY_PATH)
	@scripts/run.sh enterprise

test: ## Install what the tests need, then run all of them
	@scripts/test.sh

lint: ## Formatting, clippy, rustdoc, scripts, dependency policy and the tidy check
	@scripts/lint.sh

fmt: ## Format the Rust code
	cargo fmt --all

bench: ## Run the benchmarks, compare with the baseline (first run: save it); BENCH=name for one file, FILTER=text
	@scripts/bench.sh

bench-save: ## Run the benchmarks and make the result the baseline
	@SAVE=1 scripts/bench.sh

bench-peers: ## Measure the gateway beside Bun, uWebSockets, tokio-tungstenite and others (ARGS="--help" for choices)
	@scripts/bench-peers.sh $(ARGS)

flamegraph: ## Draw where the CPU time of the gateway goes under load (SCENARIO=fanout), needs perf
	@scripts/flamegraph.sh

loadtest: ## Load a gateway, reports in reports/ (SIZE=small|medium|large|enterprise, URL=ws://... for one that runs already)
	@scripts/loadtest.sh

conformance: ## Autobahn suite, all 517 cases (QUICK=1: the 337 of CI)
	@scripts/conformance.sh

chaos: ## Three nodes, a real Redis in six layouts, CHAOS_FAULTS (100) faults each; CHAOS_SEED repeats a run, CHAOS_LAYOUT chooses one
	@scripts/chaos.sh

fuzz: ## Run every fuzz target for FUZZ_SECONDS (10) seconds
	@scripts/fuzz.sh

docker: ## Build the container image archmesh-gateway
	docker build --tag archmesh-gateway .

clean: ## Remove build output, reports and everything the helpers installed into this folder
	cargo clean
	rm -rf .cache reports tests/clients/node_modules shards/core/fuzz/target

deps-test: ## Install the foreign clients and tools of the end-to-end tests
	@scripts/deps-test.sh

deps-conformance: ## Install the Autobahn suite
	@scripts/deps-conformance.sh

deps-peers: ## Install the servers that bench-peers compares with, into .cache/peers
	@scripts/deps-peers.sh

lint-tools: ## Install cargo-machete and cargo-deny (compiles both, some minutes)
	@scripts/lint-tools.sh

audit: ## Check the dependencies against the RustSec advisories (reads its database over the network)
	cargo deny check advisories
