# Everything runs from a checkout on Debian 12 as root; each target installs what it needs.
SHELL := /bin/bash
# Looked for when the recipe runs: make expands a recipe before its first line has installed Python.
PYTHON ?= $$(test -x /usr/bin/python3 && echo /usr/bin/python3 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
APT_NEEDS := python3 python3-venv systemd-container mmdebstrap zstd user-mode-linux tcc uml-utilities iproute2 kmod \
	ethtool util-linux openssh-client iputils-ping ca-certificates procps git
APT_TEST_NEEDS := chromium shellcheck vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 \
	qemu-utils dnsmasq-base iptables e2fsprogs
# Groups of files of integration tests side by side (tests/conftest.py).
LANES ?= 3
INTEGRATION := -p no:randomly -n $(LANES) --dist loadfile --no-loadscope-reorder
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-tests
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DEBIAN_FRONTEND := noninteractive
# Tests start hundreds of Pythons: without bytecode each would compile this package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test style unit integration test-quick extended machines bench install clean help

help: ## What can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

# $(call apt_install,packages): installs only when something is missing, so that a warm machine needs no network.
define apt_install
	missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" != 0 ]; then echo "run as root, or install:" $$missing >&2; exit 1; fi; \
	  apt-get update -q && apt-get install -y -q --no-install-recommends $$missing; \
	fi
endef

$(STAMP): pyproject.toml locks/driver.txt
	$(call apt_install,$(APT_NEEDS))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --constraint locks/driver.txt --editable .
	touch $@

$(TEST_STAMP): $(STAMP)
	$(call apt_install,$(APT_TEST_NEEDS))
	$(BIN)/python -m pip install -q --constraint locks/driver.txt --editable '.[dev]'
	touch $@

install: $(STAMP) ## Install the tool into .venv

demo: $(STAMP) ## The quickstart: from a bare Debian 12 to a report
	$(BIN)/discovery-deploy doctor experiments/quickstart.yaml
	$(BIN)/discovery-deploy run experiments/quickstart.yaml

style: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(TEST_STAMP)
	$(BIN)/python -m pytest -q tests -m "not integration" --ignore=tests/integration -n 4

integration: $(TEST_STAMP)
	$(BIN)/python -m pytest -v tests -m "integration and not extended" $(INTEGRATION) --durations=40

extended: $(TEST_STAMP) ## Integration tests that `make test` leaves out for their time
	$(BIN)/python -m pytest -q tests -m extended $(INTEGRATION) --durations=10

machines: $(TEST_STAMP) ## Of the integration tests, those on virtual machines
	$(BIN)/python -m pytest -q tests -m machines $(INTEGRATION) --durations=10

test-quick: style unit ## What needs no hosts: style, unit, contract

test: style unit integration ## All tests: style, unit, contract, then the real deployments

bench: $(STAMP) ## Measure how fast it is (PART=NAME: that alone); writes docs/benchmarks.json, docs/benchmarks.md
	$(BIN)/python benchmarks/bench.py $(PART)

clean: ## Remove the Python environment (caches stay in /var/cache/discovery-deploy)
	rm -rf $(VENV) build dist *.egg-info
