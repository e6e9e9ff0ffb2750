#!/usr/bin/env bash
# Expected: an EarlyStopping with patience=3 that is given to one Trainer for each seed stops each training by itself.
# Happens: it keeps its best score and its count from the Trainer before: the second training, of a fresh model, ends after one
#          epoch, and so does every later one, without a word.
# Versions: lightning 2.6.6, torch 2.14.1.
# For users: make the callback anew for each fit; fit warns where one has been in a fit before.
# Held by: tests/inference/test_trainer.py, test_a_callback_that_goes_on_from_another_fit_is_told_of.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.14.1" "lightning==2.6.6" numpy 2>/dev/null
cd "$work"
echo "running"
cat >remembers.py <<'PYTHON'
import logging
import sys
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.CRITICAL)
import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping


class Falls(lightning.LightningModule):
    """Its loss falls for five epochs, and is the same from then on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, _):
        loss = self.weight.sum() * 0 + max(10 - self.current_epoch, 5)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def epochs(stopping):
    trainer = lightning.Trainer(
        max_epochs=50, callbacks=[stopping], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", devices=1,
    )
    trainer.fit(Falls(), torch.utils.data.DataLoader(torch.zeros(1, 1)))
    return trainer.current_epoch


print("Python", sys.version.split()[0], "lightning", version("lightning"), "torch", version("torch"))
shared = EarlyStopping("loss", patience=3)
together = [epochs(shared) for _ in range(3)]
alone = [epochs(EarlyStopping("loss", patience=3)) for _ in range(3)]
print(f"epochs of three trainings: {alone} with an EarlyStopping each, {together} with one for all")
sys.exit(0 if len({*alone}) == 1 and together[0] == alone[0] and together[1] < alone[1] // 2 else 1)
PYTHON
venv/bin/python remembers.py 2>/dev/null
