# Every target sets up what it needs; nothing is installed again while the lock file is unchanged.
PY := .venv/bin/python
STAMP := .venv/.installed

# three test processes for two cores: a third of their time is waiting, for servers, time-outs and event time; a file's
# tests share its fixtures, and tests/conftest.py puts the longest files first
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
# percent of branches and lines, without the stories; asked for only where CI is set: elsewhere tests may be skipped for want of a program
MIN_COVERAGE := 91

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick test-stories test-faults check bench lock format clean docs test-deploy sbom release

# OpenMP threads that wait by spinning take the cores from those that work: fits four times as long on two busy cores
export OMP_WAIT_POLICY ?= PASSIVE
# compiled modules are kept whatever the machine's default is: torch loads in 4 s of CPU time instead of 10
unexport PYTHONDONTWRITEBYTECODE

help:            ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## +/\t/' | expand -t 16

setup: $(STAMP)  ## one virtual environment in .venv, pinned versions with hashes

# the first import compiles modules: once here, not by each of several processes at the same time
$(STAMP): requirements/lock.txt requirements/bootstrap.txt pyproject.toml
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	.venv/bin/uv pip install --quiet --python $(PY) --require-hashes -r requirements/lock.txt
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	$(PY) -c "import detectors.profile.fit, detectors.profile.lean_timm, monitor.daemon, scipy.stats"
	touch $@

demo: setup      ## the main job on this machine: learn, watch, alert, resolve; needs no server
	.venv/bin/layerwatch demo

test: setup      ## the test suite with its branch coverage; starts its own Redis and Kafka brokers
	$(PY) -m tests.measuring $(if $(CI),--at-least $(MIN_COVERAGE)) $(PARALLEL)

test-quick: setup ## the tests that need no broker and no browser, without the slow ones
	$(PY) -m pytest $(PARALLEL) -m "not (kafka or browser or slow or story or faults)" -q

test-stories: setup ## real daemons killed, cut off, over hours of event time, and the demo: some three minutes
	$(PY) -m pytest $(PARALLEL) -m "story and not faults" tests

test-faults: setup ## every fault on real servers and processes: some ten minutes
	$(PY) -m pytest -n 3 --dist load -m 'faults or not faults' tests/faults
	$(PY) -m pytest -n 2 --dist load -m faults --ignore tests/faults tests

check: setup     ## formatting, lint, types, layers; changes nothing
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: setup      ## reference pages from the code, then the site in site/; strict, fetches nothing
	$(PY) tools/reference.py
	$(PY) deploy/grafana/dashboards.py
	.venv/bin/mkdocs build --quiet --strict

test-deploy: setup ## build the image for real (buildah, as root) and let it pass the demo; minutes and 25 GB of disk
	tests/deploy/build_image.sh

bench: setup     ## throughput, side by side as ratios; prints tables, writes JSON to results/
	$(PY) benchmarks/throughput.py
	$(PY) benchmarks/engines.py

format: setup    ## apply formatting and the safe lint fixes
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lock: setup      ## resolve the newest allowed versions into requirements/
	echo uv | .venv/bin/uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 - -o requirements/bootstrap.txt
	.venv/bin/uv pip compile --quiet --generate-hashes --no-header --universal --python-version 3.11 --no-emit-package layerwatch requirements/lock.in -o requirements/lock.txt

sbom: setup      ## what the package needs at run time, as a CycloneDX bill of materials in dist/
	mkdir -p dist
	$(PY) tools/runtime_requirements.py --extra demo --extra claim-check --extra avro --extra protobuf --extra openvino --extra schema-registry --extra msk > dist/runtime.txt
	$(PY) -W ignore -m cyclonedx_py requirements dist/runtime.txt --pyproject pyproject.toml --mc-type library \
	    --output-reproducible --of JSON -o dist/layerwatch.cdx.json
	rm dist/runtime.txt

release: check test ## source archive, wheel, bill of materials and checksums in dist/; uploads nothing
	rm -rf dist build
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .venv/bin/uv build --quiet --python $(PY) --no-build-isolation
	$(MAKE) sbom
	cd dist && rm -f .gitignore && sha256sum * > SHA256SUMS

clean:           ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info build
