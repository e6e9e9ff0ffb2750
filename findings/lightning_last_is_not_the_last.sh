#!/usr/bin/env bash
# Expected: ModelCheckpoint(monitor=..., save_last=True) leaves the end of the training in last.ckpt, to go on from there.
# Happens: last.ckpt is a copy of what was saved last. Where the monitored value got no better after the first epoch that is
#          the first epoch: five were trained, and fit(ckpt_path="last") trains the second again, without a word.
#          With save_top_k=0 or -1 it is the last epoch.
# Versions: lightning 2.6.6, torch 2.14.1.
# For users: a run that is gone on with does not lose its epochs: fit keeps a checkpoint of the end beside the best one,
#            by a callback of its own.
# Held by: tests/inference/test_training.py, test_the_last_checkpoint_is_of_the_last_epoch.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "lightning==2.6.6" numpy 2>/dev/null
cd "$work"
echo "running"
cat >last.py <<'PYTHON'
import logging
import sys
import tempfile
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint


class Worse(lightning.LightningModule):
    """Its weight counts the steps, and what is monitored gets worse with each."""

    def __init__(self):
        super().__init__()
        self.steps = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        return -self.steps.sum()

    def validation_step(self, batch, _):
        self.log("loss", self.steps.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


print("Python", sys.version.split()[0], "lightning", version("lightning"), "torch", version("torch"))
data = torch.utils.data.DataLoader(torch.zeros(1, 1))


def last(**options):
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=5, callbacks=[ModelCheckpoint(folder, monitor="loss", save_last=True, **options)], logger=False,
            default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", devices=1,
        )
        model = Worse()
        trainer.fit(model, data, data)
        kept = torch.load(f"{folder}/last.ckpt", weights_only=True)["state_dict"]["steps"].item()
    print(f"{options or 'as it is'}: trained {model.steps.item():.0f} epochs, last.ckpt is of epoch {kept:.0f}")
    return kept


sys.exit(0 if last() == 1 and last(save_top_k=0) == 5 and last(save_top_k=-1) == 5 else 1)
PYTHON
venv/bin/python last.py 2>/dev/null
