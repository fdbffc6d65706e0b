# `make help` lists what can be done. Every target sets up what it needs: nothing but Python >= 3.10 and a package index.
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The environment is keyed by what it is made of: another lock file or another Python makes another stamp, hence a rebuild.
KEY    := $(shell $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(open("requirements.lock", "rb").read() + sys.version.encode()).hexdigest()[:12])' 2>/dev/null)
STAMP  := $(VENV)/.ready-$(KEY)
JOBS   ?= 2
SNAKEMAKE = $(BIN)/snakemake --cores $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help setup test test-all reproduce reproduce-full encoders-keep e5 e5-keep encoder reader data notebooks pytest lint export lab demo lock clean corenlp table1 publish docs

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

setup: $(STAMP) ## make the virtual environment .venv from requirements.lock (the other targets do this themselves)

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 10) else "s2dm needs Python 3.10 or newer, but $(PYTHON) is Python " + v + ": run `make PYTHON=python3.11 ...`")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

test: lint notebooks pytest ## all checks: style, notebooks clean and in step with s2dm/, library notebooks run, tests

lint: $(STAMP)
	$(BIN)/ruff check .

notebooks: $(STAMP)
	$(BIN)/nbdev_test --n_workers 2 --timing

pytest: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-all: PYTEST = -m ""
test-all: test ## the same with the slow tests

.PHONY: has-snakemake
has-snakemake: $(STAMP)
	@test -x $(BIN)/snakemake || { echo "the workflow needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; } >&2

reproduce: has-snakemake ## the whole job on the embedded data, offline: main systems, one seed; JOBS=4: four runs side by side (default 2)
	@$(SNAKEMAKE) reproduce
	@echo "The report: $(or $(S2DM_RUNS),runs)/figures/small/report.html"

reproduce-full: has-snakemake ## five encoders, four systems, fifteen seeds (many hours; may be stopped; goes on from figures/encoders/); SEEDS=3: three
	@for kept in $(wildcard figures/encoders/*.tar.xz); do $(BIN)/python workflow/records.py restore $$kept || exit 1; done
	@for k in $$(seq $(or $(SEEDS),15)); do $(SNAKEMAKE) --config profile=encoders seeds=$$k -- reproduce || exit 1; done
	$(if $(SEEDS),,$(BIN)/python experiments/encoders.py tables --out $(or $(S2DM_RUNS),runs)/figures/encoders)

encoders-keep: $(STAMP) ## put its encoders, and the records of its finished runs, into figures/encoders/
	$(BIN)/python workflow/records.py keep-encoders encoders figures/encoders/encoders.tar.xz
	$(BIN)/python experiments/encoders.py outcomes
	$(BIN)/python workflow/records.py keep encoders figures/encoders/records.tar.xz

e5: has-snakemake ## the experiment with a real encoder, seed by seed (hours; may be stopped; goes on from the records in figures/e5/)
	test ! -f figures/e5/records.tar.xz || $(BIN)/python workflow/records.py restore figures/e5/records.tar.xz
	@for k in 1 2 3 4 5; do $(SNAKEMAKE) --config profile=e5 seeds=$$k --omit-from report_reproduce -- reproduce || exit 1; done
	$(BIN)/python experiments/primary.py
	$(BIN)/python experiments/mechanism.py
	@$(SNAKEMAKE) --config profile=e5 --forcerun report_reproduce -- reproduce

e5-keep: $(STAMP) ## put the records of its finished runs into figures/e5/records.tar.xz
	$(BIN)/python workflow/records.py keep e5 figures/e5/records.tar.xz

publish: $(STAMP) ## put a report into figures/: FROM=runs/figures/full/small TO=figures/small
	$(BIN)/python workflow/publish.py $(FROM) $(TO) $(PUBLISH)

encoder: $(STAMP) ## train the embedded encoder anew, from generated text, and put it into the package (about half an hour; may be stopped)
	$(BIN)/python workflow/encoder.py

reader: $(STAMP) ## put a trained reader into the package, in a few megabytes: FROM=runs/finetune/e5/baseline/seed0/checkpoint; its scores onto its card: SCORES=runs/evaluate/e5 BESIDE=runs/evaluate/e5/baseline
	$(BIN)/python workflow/reader.py $(if $(FROM),publish $(FROM),card) $(or $(NAME),e5) $(if $(SCORES),--scores $(SCORES)) $(if $(BESIDE),--beside $(BESIDE))

data: $(STAMP) ## fetch, verify and describe the real corpora into data/raw/ and runs/figures/
	mkdir -p runs
	$(BIN)/papermill --log-output --no-progress-bar nbs/01_data.ipynb runs/01_data.ipynb

corenlp: $(STAMP) ## parse the contexts that are missing with the CoreNLP in S2DM_CORENLP (may be stopped); CORENLP_LANGUAGE=zh: of that language
	$(BIN)/python workflow/corenlp.py --language $(or $(CORENLP_LANGUAGE),en)

table1: $(STAMP) ## Table 1 from kept parses, by each rule, and an example per language, into runs/figures/e5/
	$(BIN)/python experiments/table1.py --out $(or $(S2DM_RUNS),runs)/figures/e5
	$(BIN)/python experiments/trees.py --out $(or $(S2DM_RUNS),runs)/figures/e5

export: $(STAMP) ## after editing a notebook: write s2dm/, clean the notebooks, write README.md
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python docs/update_pages.py

docs: $(STAMP) ## the documentation as a site, in _docs/site/ (a warning or a dead link fails); EXTERNAL=1: ask other sites' addresses, too
	$(BIN)/python docs/make_site.py $(if $(EXTERNAL),--external)

lab: $(STAMP) ## open the notebooks in JupyterLab; LAB_ARGS=--no-browser: what it is told besides
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/nbs $(LAB_ARGS)

demo: $(STAMP) ## a page to ask in, on this machine alone: READER=folder or name, BESIDE=a second one, DEMO_ARGS=--port=8888
	mkdir -p runs
	$(BIN)/papermill --prepare-only --no-progress-bar nbs/08_ask.ipynb runs/08_ask.ipynb \
	  $(if $(READER),-p reader "$(or $(realpath $(READER)),$(READER))") $(if $(BESIDE),-p beside "$(or $(realpath $(BESIDE)),$(BESIDE))")
	$(BIN)/voila --Voila.ip=127.0.0.1 --no-browser --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_cell_tags=remove-cell $(DEMO_ARGS) runs/08_ask.ipynb

lock: $(STAMP) ## make requirements.lock anew from settings.ini (needs a network)
	$(BIN)/python -m pip install --quiet uv
	head -n 1 requirements.lock > requirements.new
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --extra e5 --extra lora --no-annotate --no-header setup.py \
	  | sed -E '/^(nvidia-|cuda-|triton)/d' >> requirements.new
	mv requirements.new requirements.lock

clean: ## remove the environment, caches, generated data and runs; downloads in data/raw stay
	rm -rf $(VENV) _docs .snakemake .pytest_cache .ruff_cache .hypothesis data/cache data/synthetic *.egg-info
	find runs -mindepth 1 ! -path runs/.gitkeep -delete
