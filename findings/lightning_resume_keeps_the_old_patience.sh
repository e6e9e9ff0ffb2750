#!/usr/bin/env bash
# Expected: Trainer(callbacks=[EarlyStopping(patience=10)]).fit(model, ckpt_path=...) goes on with the patience, and the model
#           with the learning rate, that the new script says.
# Happens: the checkpoint overwrites both without a word: a fit that was stopped with patience=2 and is gone on with under
#          patience=10 has patience 2 again and ends at once. max_epochs is the one setting that is taken from the new script.
# Versions: lightning 2.6.6, torch 2.14.1.
# For users: a patience or a learning rate that is given to fit(resume=...) counts, whatever the checkpoint says; what cannot
#            be changed is refused.
# Held by: tests/inference/test_training.py, test_another_setting_than_then_is_taken_or_refused.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "lightning==2.6.6" numpy 2>/dev/null
cd "$work"
echo "running"
cat >resume.py <<'PYTHON'
import logging
import sys
import tempfile
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping


class Flat(lightning.LightningModule):
    """What is monitored never gets better."""

    def __init__(self, lr):
        super().__init__()
        self.weight, self.lr = torch.nn.Parameter(torch.zeros(1)), lr

    def training_step(self, batch, _):
        return self.weight.square().sum()

    def validation_step(self, batch, _):
        self.log("loss", torch.tensor(1.0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


print("Python", sys.version.split()[0], "lightning", version("lightning"), "torch", version("torch"))
data = torch.utils.data.DataLoader(torch.zeros(1, 1))


def fit(patience, lr, max_epochs, start=None):
    trainer = lightning.Trainer(
        max_epochs=max_epochs, callbacks=[EarlyStopping("loss", patience=patience)], logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, accelerator="cpu", devices=1,
    )
    trainer.fit(Flat(lr), data, data, ckpt_path=start)
    return trainer


with tempfile.TemporaryDirectory() as folder:
    first = fit(2, 0.1, 30)
    first.save_checkpoint(f"{folder}/end.ckpt")
    print(f"patience=2: ended after {first.current_epoch} epochs")
    second = fit(10, 0.001, 30, f"{folder}/end.ckpt")
after, patience = second.current_epoch, second.early_stopping_callback.patience
lr = second.optimizers[0].param_groups[0]["lr"]
print(f"gone on with, patience=10 and lr=0.001: ended after {after} epochs, patience {patience}, lr {lr}")
sys.exit(0 if first.current_epoch == 3 and after <= 4 and patience == 2 and lr == 0.1 else 1)
PYTHON
venv/bin/python resume.py 2>/dev/null
