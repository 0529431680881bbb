# pycap: everything a user or CI does. `make help` lists it. Every target sets up what it needs, once.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
APT := sudo apt-get install python3 python3-venv python3-dev g++ make

# `make test PEERS=1` also compares with PyTorch, and exported models in ONNX Runtime. Where pip has no local wheel, the CPU index spares gigabytes of CUDA.
PEERS ?=
TORCH := torch==2.13.0
TORCH_INDEX_ARGS ?= --extra-index-url https://download.pytorch.org/whl/cpu
# `make test BROWSER=1` fails where the web pages' tests would be skipped, for want of a browser.
BROWSER ?=

comma := ,
# Backends whose absence fails the tests instead of skipping them (docs/env.md).
PYCAP_REQUIRE ?= reference,cpp,triton-interpret,cuda-emu,mpi,onnx$(if $(PEERS),$(comma)peers$(comma)onnxruntime)$(if $(BROWSER),$(comma)browser)
PYTEST_ARGS ?=
# Processes of `make test`, each with whole files of tests.
JOBS ?= $(shell nproc)
# What tests of the GPU kernels need, without a GPU: Triton's interpreter and compiler, and CuPy's names. Not part of `make dev`:
# a third of a gigabyte to download.
GPU_TESTS := "triton>=3.9" "cupy-cuda13x>=14"
# More options of benchmarks.run, as in make bench BENCH_ARGS="--op lstm".
BENCH_ARGS ?=
# More options of tests.fuzz, as in make fuzz FUZZ_ARGS="--reader keras pth --seed 7".
FUZZ_ARGS ?=
# Names of steps of `make gpu`: only those.
STEPS ?=

# What pyproject.toml asks for, build and development tools, MPI, the pages' server and onnx included: one install, and no second, isolated one to build.
REQUIREMENTS := import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); q = p["project"]; \
	print(*p["build-system"]["requires"], *q["dependencies"], *(r for extra in ("dev", "distributed", "web", "onnx") for r in q["optional-dependencies"][extra]))

# As late as possible: the installation makes it.
MODULE = $(firstword $(wildcard pycap/_cpu.*.so))
CSRC := $(shell find csrc -type f 2>/dev/null)
CSRC_CPP := $(filter %.h %.cpp %.cu %.cuh,$(CSRC))

# `make sanitize BUILD=thread`: only that one of address and thread.
BUILD ?=

.PHONY: help dev run paper test lint format bench load faults fuzz gpu cubins emulation sanitize wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

dev: $(VENV)/.built ## .venv with all dependencies; the C++ backend and, where nvcc is, the CUDA kernels built in place

paper: dev ## the paper's chain on drawn demo domains, and its tables (docs/paper.md); continued where it was stopped
	$(VENV)/bin/pycap paper --auto-select

run: dev ## train on COCO if it is there, else on the demo set; then caption held-out images
	$(PY) train.py --stage coco

test: lint $(VENV)/.gpu-tests $(VENV)/.emulation $(if $(PEERS),$(VENV)/.peers) ## lint and tests; PEERS=1 installs PyTorch (CPU) and ONNX Runtime and compares with them; BROWSER=1 insists on the pages' tests in Chromium
	PYCAP_REQUIRE=$(PYCAP_REQUIRE) $(PY) -m pytest --numprocesses=$(JOBS) --dist=loadfile $(if $(PEERS),,-m "not peers") $(PYTEST_ARGS)

lint: dev ## ruff, mypy, clang-format and hadolint (Dockerfile), changing nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(if $(CSRC_CPP),$(VENV)/bin/clang-format --dry-run -Werror $(CSRC_CPP))
	$(VENV)/bin/hadolint Dockerfile

format: dev ## what lint asks for, done
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(if $(CSRC_CPP),$(VENV)/bin/clang-format -i $(CSRC_CPP))

bench: dev $(VENV)/.peers $(VENV)/.bench ## README's table of speed, beside PyTorch, ONNX Runtime, OpenVINO and ncnn, in five minutes
	$(PY) -m benchmarks.run --headline --short --plot $(BENCH_ARGS)

load: dev ## pycap serve under 200 clients, and under ten thousand hostile requests, in three minutes (docs/serving.md)
	$(PY) -m benchmarks.serving
	$(PY) -m benchmarks.hostile

faults: dev ## a hundred kills of training, each resumed, and disks that fail, in a quarter of an hour (docs/reliability.md)
	$(PY) -m tests.faults.kills
	$(PY) -m tests.faults.writes

fuzz: dev ## 10,000 files that nobody meant for each reader, by hypothesis and (where pip has it) atheris; an hour or two (docs/reliability.md)
	@$(PIP) install --quiet "atheris>=3" 2>/dev/null || echo "atheris: not for this Python; hypothesis alone"
	@ENGINE=hypothesis; if $(PY) -c "import atheris" 2>/dev/null; then ENGINE=both; fi; \
	$(PY) -m tests.fuzz --runs 10000 --engine $$ENGINE --out benchmarks/results/fuzz.json $(FUZZ_ARGS)

gpu: ## on a machine with an NVIDIA GPU: builds, tests and times its kernels; results in $$OUT or benchmarks/results/gpu; STEPS="build cuda" for some
	$(if $(wildcard $(VENV)/.built),$(PY),$(PYTHON)) -m benchmarks.gpu_check $(STEPS)

cubins: $(VENV)/.gpu-tests ## compile every GPU kernel for sm_80 (which serves sm_86 and sm_89) and sm_90; needs no GPU
	TRITON_INTERPRET=0 $(PY) -m pycap.cubins

emulation: $(VENV)/.emulation ## pycap._cuda_emu, which runs the CUDA kernels on the CPU for tests; needs no nvcc

sanitize: dev ## tests of the C++ backend under AddressSanitizer, UBSan and ThreadSanitizer, in builds of their own (docs/reliability.md); needs g++, clang and LLVM's OpenMP
	$(PY) -m tests.sanitizers.run $(BUILD)

wheel: cubins ## dist/*.whl with the compiled GPU kernels, which needs CuPy but no Triton on a GPU
	$(PIP) wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean: ## remove .venv and everything built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info kernels/cubins pycap/_*.so .pytest_cache .mypy_cache .ruff_cache
	find pycap kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second call finds them newer than what they depend on and does nothing.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "pycap needs Python 3.11 or newer; none was found. Debian/Ubuntu: $(APT)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module. Debian/Ubuntu: $(APT)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))' 2>/dev/null || \
		{ echo "$(PYTHON) has no Python.h, which the C++ backend needs. Debian/Ubuntu: $(APT)" >&2; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || \
		{ echo "pycap builds its C++ backend and found no $${CXX:-g++}. Debian/Ubuntu: $(APT)" >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	@echo "installing the dependencies (about a minute the first time)"
	@$(PIP) install --quiet $$($(PY) -c '$(REQUIREMENTS)')
	@touch $@

$(VENV)/.editable: $(VENV)/.installed setup.py
	@echo "building pycap"
	@$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# The installation above has built the kernels; after a change to them only what it touches is built again, in build/.
$(VENV)/.built: $(VENV)/.editable CMakeLists.txt $(CSRC)
	@if [ -z "$(MODULE)" ] || [ -n "$$(find csrc CMakeLists.txt -newer "$(MODULE)" -print -quit)" ]; then \
		echo "building pycap" && $(PY) setup.py --quiet build_ext --inplace; fi
	@touch $@

$(VENV)/.emulation: $(VENV)/.built setup.py CMakeLists.txt $(CSRC)
	@echo "building the emulation of the CUDA kernels"
	@$(PY) setup.py --quiet build_emulation
	@touch $@

$(VENV)/.gpu-tests: $(VENV)/.built
	@echo "installing Triton and CuPy for the tests of GPU kernels (no GPU is needed)"
	@$(PIP) install --quiet $(GPU_TESTS)
	@touch $@

$(VENV)/.peers: $(VENV)/.built
	@echo "installing $(TORCH) (CPU) and ONNX Runtime for the comparisons"
	@$(PIP) install --quiet --no-index --no-deps "$(TORCH)" 2>/dev/null || $(PIP) install --quiet $(TORCH_INDEX_ARGS) "$(TORCH)"
	@$(PIP) install --quiet "$(TORCH)" "onnxruntime>=1.20"
	@touch $@

# One by one: a peer that this machine has no wheel for is a row that says so.
$(VENV)/.bench: $(VENV)/.built pyproject.toml
	@$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' | \
		while read -r peer; do \
			echo "installing $$peer for make bench"; \
			$(PIP) install --quiet "$$peer" </dev/null || echo "$$peer: not for this machine; its rows will say so"; \
		done
	@touch $@
