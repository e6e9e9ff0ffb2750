#!/usr/bin/env bash
# Expected: a validation that reads no batch, as of a stream whose iterator came to its end in the epoch before, has no value, so
#           that what watches the value raises an error, or waits.
# Happens: the value of the last validation that had one stays in `trainer.callback_metrics`. `EarlyStopping` counts it as one that
#          does not improve, and stops a training that goes well; `ModelCheckpoint` keeps the first epoch as the best. Beside it, a
#          training of six epochs on such a stream ends well, after the steps of one. Nothing is said of any of it.
# Versions: lightning 2.6.6, torch 2.14.1.
# For users: fit of this package raises ValueError at the first epoch or validation without a batch; elsewhere let __iter__ of a stream
#            make a new iterator each time.
# Held by: tests/inference/test_brought.py, test_a_stream_that_can_be_read_once_is_told_of.
# Exit status: 0 while it is so, 1 when the behaviour has changed. Another interpreter: PYTHON=python3.13 findings/….sh
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "installing"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile lightning==2.6.6 torch==2.14.1 2>/dev/null
cd "$work"
echo "running"
venv/bin/python - <<'PYTHON' 2>/dev/null
import sys

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

print("Python", sys.version.split()[0], "lightning", lightning.__version__, "torch", torch.__version__)
LARGE = [torch.ones(1)] * 8


class Once(IterableDataset):
    def __init__(self):
        self.items = iter(LARGE)

    def __iter__(self):
        return self.items


class Line(lightning.LightningModule):
    """A weight that goes from 0 to 1, and so does better in every epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.validated = 0

    def training_step(self, batch, index):
        return (self.weight - batch).square().mean()

    def validation_step(self, batch, index):
        self.validated += 1
        self.log("loss", (self.weight - batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def trained(data, validation):
    module, best = Line(), ModelCheckpoint("best", monitor="loss", filename="{epoch}")
    trainer = lightning.Trainer(
        max_epochs=6,
        callbacks=[best, EarlyStopping("loss", patience=3)],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(data, 4), DataLoader(validation, 4))
    kept = float(torch.load(best.best_model_path)["state_dict"]["weight"])
    print(f"  {trainer.global_step} steps, {module.validated} batches of validation, weight {float(module.weight):.2f}", end="")
    print(f", of the best checkpoint {kept:.2f}")
    return trainer.global_step, module.validated, kept < float(module.weight) - 0.1


print("data and validation that can be read again:")
whole = trained(LARGE, LARGE)
print("validation that can be read once:")
once = trained(LARGE, Once())
print("data that can be read once:")
data = trained(Once(), LARGE)
sys.exit(0 if whole == (12, 12, False) and once == (8, 2, True) and data[0] == 2 else 1)
PYTHON
