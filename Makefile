# Every target sets itself up: .venv is made if it is missing, and renewed when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# constraints-oldest.txt holds the oldest torch that is supported
CONSTRAINTS ?= constraints.txt
# Where it is set, each process compiles torch and all else from source once more, which doubles what a start takes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-teacher export-demo experiments-table configuration-page docs test test-slow test-resume test-kills fuzz bench-step bench-teacher bench-memory bench-losses bench-growth bench-input bench-evaluation bench-start-up bench-commands bench-gpu evidence evidence-real format lint types check clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY)  ## Make .venv and install everything

# torch and torchvision are resolved together, in the versions of $(CONSTRAINTS). uv does in seconds what
# takes pip minutes; pip installs it.
$(READY): pyproject.toml $(CONSTRAINTS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints $(CONSTRAINTS) --editable '.[dev,docs,export,mlflow,predict,sweep,wandb]'
	@touch $@

demo: $(READY)  ## Distil a detector on generated scenes and compare: table, pictures, curves in demo/
	$(BIN)/defeat-demo $(ARGS)

demo-teacher: $(READY)  ## Train the demo's teacher anew and put its weights into the package (under an hour)
	$(BIN)/python -m defeat.demo.demo_teacher $(ARGS)

export-demo: $(READY)  ## Export the student of the latest demo in every format, compared, timed, with a model card
	@ls demo/*/DeFeat/checkpoints/best.ckpt >/dev/null 2>&1 || { echo 'no demo here yet: make demo'; exit 1; }
	$(BIN)/defeat-export checkpoint=$$(ls -t demo/*/DeFeat/checkpoints/best.ckpt | head -1) \
	  'format=[onnx,core,safetensors,state_dict]' timing=true $(ARGS)

experiments-table: $(READY)  ## Write docs/experiments.md from conf/experiment
	$(BIN)/python tools/experiments_table.py

configuration-page: $(READY)  ## Write docs/configuration.md from conf/ and its comments
	$(BIN)/python tools/configuration_page.py

docs: $(READY)  ## Build the documentation site in build/site, strictly: a page with a dead link stops it
	PYTHONPATH=tools $(BIN)/zensical build --strict

test: $(READY)  ## Run the tests
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(READY)  ## Run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

test-resume: $(READY)  ## Resume a run from each of its steps, in every way it may be set up, and compare bit by bit
	$(BIN)/pytest -m slow tests/run/test_exact_resume.py -q $(ARGS)

test-kills: $(READY)  ## Kill a run 60 times at any moment, resume it each time, and compare the end
	$(BIN)/pytest -m slow tests/run/test_kills.py -q $(ARGS)

fuzz: $(READY)  ## Feed thousands of damaged annotations, images, weights and configurations to the readers
	$(BIN)/pytest -m slow tests/fuzz -q $(ARGS)

bench-step: $(READY)  ## Time the distillation step beside its floor, the usual design and torchdistill
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints $(CONSTRAINTS) --editable '.[bench]'
	$(BIN)/python benchmarks/step.py $(ARGS)

bench-teacher: $(READY)  ## Time the rewritten teacher in every precision, and measure its errors
	$(BIN)/python benchmarks/teacher.py $(ARGS)

bench-memory: $(READY)  ## Measure the peak memory of a distillation step beside the student's own
	$(BIN)/python benchmarks/memory.py $(ARGS)

bench-losses: $(READY)  ## Time masks and losses beside the whole distillation step
	$(BIN)/python benchmarks/losses.py $(ARGS)

bench-growth: $(READY)  ## Time the step at growing sizes: straight lines, and docs/performance_growth.png
	$(BIN)/python benchmarks/growth.py $(ARGS)

bench-input: $(READY)  ## Time decoding and loading beside the bare JPEG decode, and count the padding of batches
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/input.py $(ARGS)

bench-evaluation: $(READY)  ## Time the figures of a validation beside pycocotools, and measure their memory
	$(BIN)/python benchmarks/evaluation.py $(ARGS)

bench-start-up: $(READY)  ## Time the start on a generated data set of COCO's size, and measure its memory
	$(BIN)/python benchmarks/start_up.py $(ARGS)

bench-commands: $(READY)  ## Time commands that do no work, such as --help and mistakes, and measure their memory
	$(BIN)/python benchmarks/commands.py $(ARGS)

bench-gpu: $(READY)  ## Time distillation on a GPU beside its floor, its peak memory and FLOP/s, and its waits
	$(BIN)/python benchmarks/gpu.py $(ARGS)

evidence: $(READY)  ## Train every row of the method on generated scenes over seeds, resumably, and compare (days)
	$(BIN)/python tools/evidence.py scenes $(ARGS)

evidence-real: $(READY)  ## The same on real images: TABLE=bccd, person or person_r18, ARGS="--data FOLDER --resnet50 FILE"
	$(BIN)/python tools/evidence.py $(or $(TABLE),bccd) $(ARGS)

format: $(READY)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)  ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)  ## Check types
	$(BIN)/mypy

check: lint types test  ## Everything that CI checks but the wheel

clean:  ## Remove .venv, caches and the built site; runs and demo stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .cache build/site
