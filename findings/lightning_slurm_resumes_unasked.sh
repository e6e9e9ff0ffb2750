#!/usr/bin/env bash
# Expected: Trainer().fit(model, data), without ckpt_path, trains from the model's own weights, on a cluster as anywhere.
# Happens: in a job of Slurm's a SIGUSR1, which sites send before a job's time is over, writes hpc_ckpt_1.ckpt into the working
#          directory, and from then on every fit that is started there under Slurm goes on from it: weights, epoch, optimizer
#          and learning rate of whatever wrote it win without a word.
# Versions: lightning 2.6.6, torch 2.14.1.
# For users: fit makes Trainers that leave no such checkpoint, and a fit that was not asked to go on is refused where Lightning
#            would; with a Trainer of your own give SLURMEnvironment(auto_requeue=False), or a default_root_dir for each run.
# Held by: tests/experiments/test_surroundings.py, test_under_slurm_no_signal_leaves_a_checkpoint_for_every_later_fit.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "lightning==2.6.6" numpy 2>/dev/null
cd "$work"
echo "running"
cat >unasked.py <<'PYTHON'
import logging
import os
import signal
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.CRITICAL)
import lightning
import torch

SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "night", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


class Counts(lightning.LightningModule):
    """Its weight is what its steps add up to, one an epoch."""

    def __init__(self, rate):
        super().__init__()
        self.sum, self.rate = torch.nn.Parameter(torch.zeros(1)), rate

    def training_step(self, batch, _):
        return -self.sum.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Signals(lightning.Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def fitted(rate, *callbacks):
    model, data = Counts(rate), torch.utils.data.DataLoader(torch.zeros(1, 1))
    lightning.Trainer(
        max_epochs=5, callbacks=[*callbacks], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", devices=1,
    ).fit(model, data)
    return model.sum.item()


print("Python", sys.version.split()[0], "lightning", version("lightning"), "torch", version("torch"))
alone = fitted(1.0)
os.environ.update(SLURM)
fitted(100.0, Signals())
left = [path.name for path in Path().glob("*.ckpt")]
after = fitted(1.0)
print(f"a fit of five steps of 1: {alone:g}; with {', '.join(left)} of another one in its folder: {after:g}")
sys.exit(0 if alone == 5 and left == ["hpc_ckpt_1.ckpt"] and after >= 200 else 1)
PYTHON
venv/bin/python unasked.py 2>/dev/null
