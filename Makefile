# storage-agent: everything a newcomer needs. `make demo` and `make test` set up what they use, Debian packages included.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
# Of the tests. Much of their time is waiting: two more than there are processors keep those busy.
WORKERS ?= $(shell expr $$(nproc) + 2)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What the agent itself runs (qemu, LVM), what the tests check it with (nbd, nginx, Samba, Swift, Ceph, tgt, libvirt, a JDK with gson), and what
# builds the demo's guest and libvirt-python.
PACKAGES := python3-venv postgresql-15 qemu-utils qemu-block-extra qemu-system-x86 nbdkit libnbd-bin nginx-light \
            busybox-static cpio kmod mtools syslinux genisoimage zstd xz-utils bzip2 systemd util-linux curl xfsprogs \
            openjdk-17-jdk-headless libgoogle-gson-java samba smbclient swift-proxy swift-account swift-container swift-object \
            ceph-mon ceph-mgr ceph-osd ceph-common python3-rados python3-rbd radosgw \
            libvirt-daemon libvirt-daemon-driver-qemu libvirt-dev pkg-config gcc python3-dev mmdebstrap e2fsprogs lvm2 tgt

.PHONY: help demo demo-cloudstack demo-xen demo-hyperv test test-stores test-system lint bench packages clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: packages $(READY)  ## the main job, end to end, on this machine
	$(BIN)/python -m tests.demo

demo-cloudstack: packages $(READY)  ## a management server's commands, in CloudStack's protocol, with S3 alone
	$(BIN)/python -m tests.demo.cloudstack

demo-xen: packages $(READY)  ## a pool of XenServer hosts (a double): template, clone, backups, restore, with S3 alone
	$(BIN)/python -m tests.demo.xen

demo-hyperv: packages $(READY)  ## a Hyper-V host (a double) on a real Samba: template, linked clone, backup, restore, with S3 alone
	$(BIN)/python -m tests.demo.hyperv

# On a busy machine a test may starve beside the others. What fails is run once more, alone; what fails twice is broken.
test: packages $(READY)  ## all tests
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder || $(BIN)/pytest --last-failed --last-failed-no-failures none

test-stores: packages $(READY)  ## the store contract against every store and real server there is, and a table of what passed
	$(BIN)/python -m tests.store_table

test-system: packages $(READY)  ## the package and its unit in a Debian guest with a kernel of its own, emulated; not part of test
	$(BIN)/python -m tests.system

lint: $(READY)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: packages $(READY)  ## the figures of docs/performance.md, as a table and as JSON
	$(BIN)/python -m benchmarks

packages:
	@missing=""; for p in $(PACKAGES); do \
	  dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    echo "installing$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
	      apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "missing Debian packages; install them and try again: sudo apt-get install$$missing" >&2; exit 1; fi; fi

$(READY): pyproject.toml requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

clean:  ## remove what the targets above made in this folder
	rm -rf $(VENV) build benchmarks/results *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
