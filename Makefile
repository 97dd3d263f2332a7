# A thin face of meson: see README.md.
#   make          build into build/
#   make demo     build, then a real QLoRA DPO job on the bundled model, watched live
#   make check    build, then every test: plain, sanitizers, simulation, fuzz replay
#   make bench    speed, beside the machine's own peak
#   make tsan     the daemon and the wire under ThreadSanitizer, not part of check
#   make gpu-bundle   a tar for a machine with a GPU: programs, libraries, tests/gpu/run
BUILD ?= build
SHELL := /bin/bash

.PHONY: all deps demo check bench bench-daemon oracle-check tsan gpu-bundle install clean
all: deps
	@tests/setup/build.sh $(BUILD)
deps:
	@tests/setup/deps.sh
demo: deps
	@tests/setup/demo.sh $(BUILD)
check: deps
	@tests/setup/check.sh $(BUILD)
bench: all
	@meson test -C $(BUILD) --benchmark --suite train --verbose
bench-daemon: all
	@meson test -C $(BUILD) --benchmark --suite daemon --verbose
oracle-check: all
	@tests/oracle/check.sh $(BUILD)
tsan: deps
	@tests/setup/tsan.sh $(BUILD)
gpu-bundle: all
	@tests/setup/gpu_bundle.sh $(BUILD) $(BUILD)/alignd-gpu.tar.gz
install: all
	@meson install -C $(BUILD)
clean:
	@rm -rf $(BUILD) $(BUILD)-*
