#!/usr/bin/env bash
# Expected: an optional entry of a defaults list whose name is put together from two other choices, "${a}_${b}", is left out
#           where no such file is there, also where neither was chosen (null), in every version of Hydra.
# Happens: in 1.3.8 a null stands in the name as "None", no file has that name, and the entry is left out. In 1.4.0rc3 it is an
#          error, "Error resolving interpolation", and nothing is composed; an option that is called none, and is empty, composes in both.
#          The candidate comes unasked: hydra-joblib-launcher 1.2.0 and hydra-optuna-sweeper 1.3.0 need hydra-core>=1.1.0.dev7, and a
#          bound that names a development version lets pip take pre-releases, which a bound of the application, >=1.3.2, does not undo.
# Versions: hydra-core 1.3.8 and 1.4.0rc3, omegaconf 2.3.1 and 2.4.1rc1, hydra-joblib-launcher 1.2.0, hydra-optuna-sweeper 1.3.0,
#           packaging 25.0.
# For users: no choice of experiment or budget is the option none, and all commands run on both.
# Held by: tests/experiments/test_config.py, test_no_choice_in_the_defaults_is_null.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install -q --no-compile "$@" 2>/dev/null; }
pip packaging==25.0
pip --target "$work/1.3" hydra-core==1.3.8 omegaconf==2.3.1
pip --target "$work/1.4" hydra-core==1.4.0rc3 omegaconf==2.4.1rc1
pip --target "$work/plugins" --no-deps hydra-joblib-launcher==1.2.0 hydra-optuna-sweeper==1.3.0
cd "$work"
mkdir -p conf/kind conf/size conf/both
printf 'defaults:\n  - kind: NOTHING\n  - size: NOTHING\n  - optional both: ${kind}_${size}\n' >conf/template
sed s/NOTHING/null/g conf/template >conf/nulls.yaml
sed s/NOTHING/none/g conf/template >conf/nones.yaml
for group in kind size; do echo "{}" >"conf/$group/none.yaml"; done
cat >composed.py <<'PYTHON'
import sys
import warnings

warnings.simplefilter("ignore")
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

with initialize_config_dir(sys.argv[1]):
    try:
        print("composed", compose(sys.argv[2]))
    except HydraException as error:
        print("error", " ".join(str(error).split())[:60])
PYTHON
echo "running"
venv/bin/python - "$work" <<'PYTHON'
import os
import subprocess
import sys
from importlib.metadata import distributions

from packaging.requirements import Requirement

work = sys.argv[1]
print("Python", sys.version.split()[0])


def composed(version, name):
    given = {**os.environ, "PYTHONPATH": f"{work}/{version}"}
    command = [sys.executable, "composed.py", f"{work}/conf", name]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, env=given).stdout.strip()
    print(f"Hydra {version}, {name}: {said}")
    return said.startswith("composed")


answers = [composed(version, name) for version in ("1.3", "1.4") for name in ("nulls", "nones")] == [True, True, False, True]
taken = []
for plugin in sorted(distributions(path=[f"{work}/plugins"]), key=lambda one: one.name):
    needs = next(one for one in map(Requirement, plugin.requires) if one.name.replace("_", "-") == "hydra-core")
    own = Requirement("hydra-core>=1.3.2").specifier
    taken.append((needs.specifier & own).contains("1.4.0rc3") and not own.contains("1.4.0rc3"))
    print(f"{plugin.name} {plugin.version} needs {needs}; with >=1.3.2 it lets 1.4.0rc3 in: {taken[-1]}")
sys.exit(0 if answers and taken == [True, True] else 1)
PYTHON
