#!/usr/bin/env bash
# Expected: a job of a --multirun that ends in sys.exit("a sentence") fails as one that raises: the other jobs still run. And
#           a failure means an exit code above 0.
# Happens: after an exception the later jobs run, and it is reported at the end, with code 1. After sys.exit none of them
#          starts; sys.exit(0), "done", ends the whole sweep with code 0, and an exception of an earlier job is then never
#          reported. With hydra.sweeper.max_batch_size=1 an exception stops the later jobs too.
# Versions: hydra-core 1.3.8.
# For users: jobs of pyro-tvae train --multirun that end in a sentence leave the others running; the failed ones are listed at
#            the end.
# Held by: tests/experiments/test_sweeps.py, test_a_job_that_fails_stops_no_other_and_is_tried_again.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "hydra-core==1.3.8" 2>/dev/null
cd "$work"
echo "running"
cat >job.py <<'PYTHON'
import sys

import hydra
from hydra.core.config_store import ConfigStore

ConfigStore.instance().store("config", {"end": "well"})


@hydra.main(version_base=None, config_path=None, config_name="config")
def main(config):
    print("ran", config.end)
    if config.end == "raise":
        raise ValueError("a sentence")
    if config.end.startswith("exit"):
        sys.exit(0 if config.end == "exit0" else "a sentence")


main()
PYTHON
venv/bin/python - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

print("Python", sys.version.split()[0], "hydra-core", version("hydra-core"))


def sweep(ends, *options):
    command = [sys.executable, "job.py", "--multirun", f"end={ends}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ran ")]
    print(f"{ends} {' '.join(options)}: ran {ran}, code {done.returncode}, ValueError told: {'ValueError' in done.stderr}")
    return ran, done.returncode, "ValueError" in done.stderr


answers = [
    sweep("raise,well,again") == (["raise", "well", "again"], 1, True),
    sweep("exit,well,again") == (["exit"], 1, False),
    sweep("exit0,well,again") == (["exit0"], 0, False),
    sweep("raise,exit0,well") == (["raise", "exit0"], 0, False),
    sweep("raise,well,again", "hydra.sweeper.max_batch_size=1") == (["raise"], 1, True),
]
sys.exit(0 if all(answers) else 1)
PYTHON
