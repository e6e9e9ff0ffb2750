#!/usr/bin/env bash
# Expected: after Trainer.fit the callbacks, the module and trainer.global_step of this process say what happened, under any
#           strategy.
# Happens: under ddp_spawn (and ddp_notebook, ddp_fork) what comes home is the last weights, callback_metrics and the path of the
#          best checkpoint. A history that a callback kept is empty, best_model_score None, EarlyStopping has waited 0 times,
#          global_step and current_epoch are 0, and attributes of the module are those of before. fit says nothing.
# Versions: lightning 2.6.6, torch 2.14.1.
# For users: fit hands back a history and the best weights, which such strategies leave in the children: it refuses them and
#            names ddp, under which each process is started whole.
# Held by: tests/inference/test_processes.py, test_every_other_strategy_of_lightnings_is_refused_or_trains_here.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "lightning==2.6.6" numpy 2>/dev/null
cd "$work"
echo "running"
cat >spawned.py <<'PYTHON'
import logging
import sys
import tempfile
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint


class Rows(Callback):
    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, module):
        self.rows.append(trainer.current_epoch)


class Falling(lightning.LightningModule):
    """Its weight falls by one a step; what is monitored is best after the first epoch."""

    def __init__(self):
        super().__init__()
        self.weight, self.noted = torch.nn.Parameter(torch.zeros(1)), 0

    def training_step(self, batch, _):
        self.noted += 1
        return self.weight.sum()

    def validation_step(self, batch, _):
        self.log("loss", -self.weight.sum(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(strategy, devices):
    with tempfile.TemporaryDirectory() as folder:
        rows, best, stop = Rows(), ModelCheckpoint(folder, monitor="loss"), EarlyStopping("loss", patience=9)
        trainer = lightning.Trainer(
            max_epochs=3, callbacks=[rows, best, stop], strategy=strategy, devices=devices, accelerator="cpu", logger=False,
            default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        )
        module, data = Falling(), torch.utils.data.DataLoader(torch.zeros(2, 1))
        trainer.fit(module, data, data)
        score = None if best.best_model_score is None else best.best_model_score.item()
        home = module.weight.item() < 0, bool(trainer.callback_metrics), bool(best.best_model_path)
        lost = rows.rows, score is None, stop.wait_count, trainer.global_step, trainer.current_epoch, module.noted
    print(f"{strategy}: weights, metrics, best path home: {home}; rows {lost[0]}, no best score: {lost[1]}, waited {lost[2]}, "
          f"global_step {lost[3]}, epoch {lost[4]}, steps noted in the module {lost[5]}", flush=True)
    return home, lost


if __name__ == "__main__":
    print("Python", sys.version.split()[0], "lightning", version("lightning"), "torch", version("torch"), flush=True)
    alone, spawned = fit("auto", 1), fit("ddp_spawn", 2)
    as_expected = alone == ((True,) * 3, ([0, 1, 2], False, 2, 6, 3, 6))
    sys.exit(0 if as_expected and spawned == ((True,) * 3, ([], True, 0, 0, 0, 0)) else 1)
PYTHON
timeout 150 venv/bin/python spawned.py 2>/dev/null
