# make run: a Key Protect on this machine.  make test: the whole suite.  make test ARGS="tests/interop -k wrap": a part.
# Two processes, each with whole files: much of what tests do is wait for servers.
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not alone"
.PHONY: run test test-slow test-faults test-kube-apiserver soak lint bench

run:
	@scripts/setup
	@exec .venv/bin/hsmkms up --softhsm softhsm/softhsm2.conf.template

test:
	@scripts/setup --dev
ifeq ($(ARGS),)
	@$(MAKE) --no-print-directory lint
	.venv/bin/python -m scripts.benchmark.guard
	.venv/bin/pytest $(PARALLEL)
	.venv/bin/pytest -m "alone and not slow"
else
	.venv/bin/pytest $(ARGS)
endif

test-slow:
	@scripts/setup --slow
	.venv/bin/pytest -m slow $(ARGS)

# Every fault of the bench, as a table and in fault-bench.json. What needs to mount disks is skipped without root.
test-faults:
	@scripts/setup --dev
	FAULTS_JSON=fault-bench.json .venv/bin/pytest tests/faults/test_bench.py -m "slow or not slow" $(ARGS)

# Random faults under load; make soak ARGS="--minutes 5 --seed 1".
soak:
	@scripts/setup --dev
	.venv/bin/python -m tests.faults.soak $(ARGS)

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

bench:
	@scripts/setup --dev
	scripts/bench $(ARGS)

# A whole kube-apiserver, built from Debian's source the first time (minutes, and golang-1.19-go).
test-kube-apiserver:
	@scripts/setup --dev
	KUBE_APISERVER=$$(scripts/build-kube-apiserver) .venv/bin/pytest -m slow tests/interop/test_kube_apiserver.py $(ARGS)
