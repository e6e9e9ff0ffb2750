#!/usr/bin/env bash
# Expected: a pattern of options, kind=glob(mine_*), matches whatever kind=NAME takes; and one that matches nothing is an error, as
#           a NAME that is not there is.
# Happens: options in a folder of hydra.searchpath are taken by name and matched by no pattern, though the same folder given as
#          --config-dir has them matched. A pattern that matches nothing makes a sweep of no jobs, without a word and with code 0;
#          a list of patterns, one of which matches, runs less than was asked for.
# Versions: hydra-core 1.3.8.
# For users: pyro-tvae train --multirun matches recipes of one's own, and refuses patterns that match nothing.
# Held by: tests/experiments/test_sweeps.py, test_patterns_match_recipes_of_ones_own_and_run_nothing_else.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "hydra-core==1.3.8" 2>/dev/null
cd "$work"
mkdir -p conf/kind own/kind
printf 'defaults:\n  - kind: plain\n' >conf/config.yaml
echo "name: plain" >conf/kind/plain.yaml
for name in mine_a mine_b; do echo "name: $name" >"own/kind/$name.yaml"; done
cat >job.py <<'PYTHON'
import hydra


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    print("ran", config.kind.name)


main()
PYTHON
echo "running"
venv/bin/python - "$work" <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

print("Python", sys.version.split()[0], "hydra-core", version("hydra-core"))
FOLDER, SEARCHED = ["--config-dir", "own"], [f"hydra.searchpath=[file://{sys.argv[1]}/own]"]


def sweep(kind, own):
    command = [sys.executable, "job.py", "--multirun", *own, f"kind={kind}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ran ")]
    print(f"{own[0].partition('=')[0]}, kind={kind}: ran {ran}, code {done.returncode}, said {len(done.stderr)} characters")
    return ran, done.returncode, bool(done.stderr)


answers = [
    sweep("mine_a,mine_b", SEARCHED) == (["mine_a", "mine_b"], 0, False),
    sweep("glob(mine_*)", FOLDER) == (["mine_a", "mine_b"], 0, False),
    sweep("glob(mine_*)", SEARCHED) == ([], 0, False),
    sweep("glob([mine_*,plain])", SEARCHED) == (["plain"], 0, False),
    sweep("glob(mien_*)", FOLDER) == ([], 0, False),
    sweep("mien_a", FOLDER)[:2] == ([], 1),
]
sys.exit(0 if all(answers) else 1)
PYTHON
