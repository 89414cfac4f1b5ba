# What can be done here: `make help`. Every target that needs it sets up .venv first.

PYTHON ?= python3
VENV := .venv/bin
LAB := $(VENV)/python tests/lab/lab.py
PYTEST := $(VENV)/python -m pytest
SIDE_BY_SIDE := -n auto --maxprocesses 4

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup demo shell debian grub test lint format unit kvm lab browser linux guests bench soak clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/.installed  ## install what is missing, and the project into .venv
	@:

.venv/.installed: pyproject.toml setup.py $(wildcard pyvmm/*_build.py pyvmm/*/*_build.py) \
    $(wildcard firmware/*.S firmware/*.h firmware/*.ld firmware/*.py)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("setup: Python 3.11 or \
	later is needed, and $(PYTHON) is older; name another with make PYTHON=…")'
	@$(PYTHON) -m guests.debian gcc "libc headers" "kernel headers" "Python headers" venv iasl ip nft
	@$(VENV)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "setup: installing PyVMM and its test tools into .venv"
# "compat" puts the checkout itself on the path, which spares every start 8 ms of import hook; the
# bytecode is for those who have switched off its being written.
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check \
	    --config-settings editable_mode=compat --editable '.[test]'
	@$(VENV)/python -m compileall -q pyvmm
	@touch $@

demo: setup  ## boot Debian's kernel from a disk image and show what it can do
	@$(VENV)/python -m guests.demo

shell: setup  ## the same guest, interactive
	@$(VENV)/python -m guests.demo --shell

debian: setup  ## all of Debian, interactive: systemd, and a network if you are root
	@$(VENV)/python -m guests.demo --debian

grub: setup  ## the same Debian from its own boot loader: GRUB's menu, its kernel and initrd
	@$(VENV)/python -m guests.demo --grub

test: lint unit kvm lab browser linux  ## all that follows, down to linux
	@echo "make test: all passed"

lint: setup  ## style and types
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy --strict pyvmm

unit: setup  ## tests without KVM
	$(PYTEST) $(SIDE_BY_SIDE) --hypothesis-profile repeatable tests/unit

kvm: setup  ## tests with guests of our own
	$(VENV)/python -m guests.asm.build
	@$(MAKE) --silent -C guests/lessons
	@$(VENV)/python -m guests.seabios
	$(LAB) --needs kvm -- $(PYTEST) $(SIDE_BY_SIDE) -p no:cacheprovider tests/kvm

lab: setup  ## tests of the lab itself
	$(PYTEST) tests/lab

browser: setup  ## tests of the report in headless Chromium, which is installed for it
	$(PYTEST) --hypothesis-profile repeatable tests/browser

linux: setup guests  ## tests with Linux guests, in the lab where this host can't run them
# A lab for every few files: one that is lost doesn't take all others with it (--attempts). Not two
# at a time: guests that are too slow for their timer stand still.
	printf '%s\n' tests/linux/test_*.py | xargs -n 2 $(LAB) --memory 8G --attempts 3 -- \
	    $(PYTEST) -p no:cacheprovider -rfER --durations=5

guests: setup  ## build the Linux guests without running them
	@$(VENV)/python -m guests.kernel cloud
	@$(VENV)/python -m guests.vmlinux cloud
	@$(VENV)/python -m guests.memtest
	@$(VENV)/python -m guests.ipxe
	@$(VENV)/python -m guests.memdisk
	@$(VENV)/python -m guests.seabios
	@$(VENV)/python -m guests.initramfs cloud
	@$(VENV)/python -m guests.initramfs cloud --name net --module virtio_net
	@$(VENV)/python -m guests.initramfs cloud --name memory \
	    --module virtio_rng --module virtio_balloon
	@$(VENV)/python -m guests.initramfs cloud --name sockets --program vsock \
	    --module virtio_console --module vmw_vsock_virtio_transport
	@$(VENV)/python -m guests.disk
	@$(VENV)/python -m guests.debian_disk
	@$(VENV)/python -m guests.grub_disk

bench: setup  ## measure
	$(LAB) --needs kvm -- $(VENV)/python -m tests.bench

soak: setup  ## Debian under load for half an hour; make soak SOAK=--full for hours
	$(VENV)/python -m tests.soak $(SOAK)

format: setup  ## put the code into its form
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

clean:  ## remove all that was built, .venv too
	rm -rf build .venv *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f pyvmm/*.so pyvmm/*/*.so pyvmm/bios.rom
