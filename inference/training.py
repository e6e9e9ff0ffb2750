"""Training: ``fit`` runs a Lightning module around an objective, and hands the history back."""

from __future__ import annotations

import signal
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as lightning
import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_tvae import TVAE, Guide
from pyro_tvae.judging import as_they_were, in_turn, refuse_inference_mode
from pyro_tvae.naming import NamedModule, check_store
from pyro_tvae.programs import untouched_store

from .batches import Batch, batch_of, peek, tell_of_mask
from .callbacks import History, MatmulPrecision, ProgressBar, Settings, _Recorder
from .checkpoints import KEY, Patience, read_checkpoint, restored
from .checks import (
    NonFiniteError,
    check_batch,
    check_data,
    check_directory,
    check_makers,
    check_options,
    check_precision,
    check_trainer,
)
from .chunks import placed
from .fitting import Fitting, Objectives, Schedules
from .former import gathered
from .keeping import Keeping, claimed
from .objectives import ELBO
from .optimizers import Optimizers, check_optimizer
from .randomness import RandomStates, own_randomness
from .trainer import TrainerOptions, check_strategy, file_loggers, lent, make_trainer, plain_ends, quiet, tell_of_used

__all__ = ["Fitting", "History", "NonFiniteError", "TrainerOptions", "fit"]


@gathered("trainer", TrainerOptions)
def fit(
    model: TVAE,
    guide: Guide,
    data: Tensor | DataLoader | lightning.LightningDataModule,
    *,
    validation: Tensor | DataLoader | None = None,
    max_epochs: int | None = None,
    max_steps: int = -1,
    batch_size: int = 8,
    optimizer: Optimizers | None = None,
    schedule: Schedules | None = None,
    objective: Objectives | pyro.infer.ELBO = ELBO,
    warmup_steps: int = 1500,
    beta: float = 1.0,
    num_particles: int = 1,
    frame_dropout: float = 0.0,
    subsample_frames: int | float | None = None,
    gradient_clip: float | None = None,
    patience: int | None = None,
    directory: str | Path | None = None,
    resume: str | Path | None = None,
    seed: int | None = None,
    matmul_precision: str | None = None,
    capture: bool | str = "auto",
    compile: bool = False,
    progress: bool = True,
    trainer: lightning.Trainer | TrainerOptions | None = None,
) -> History:
    """Fit model and guide by stochastic variational inference; they are trained in place.

    With validation data the weights with the best validation ELBO are the ones left in place; where an error or Ctrl-C
    ends a fit that writes to a ``directory``, those reached, and the error names the files. Modules come back in the
    mode, training or evaluation, that they were in; every measure judges in evaluation mode. Threads take turns.

    Args:
        model: the generative program.
        guide: its posterior.
        data: sequences (N, S, channel, height, width); or a loader of such batches (tensors, tuples that begin with
            one, or mappings with ``x``); or a Lightning data module. Frames that are missing are said by booleans
            (B, S), the entry ``observed`` or a tuple's second item: neither shown to the guide nor scored. Other
            entries go by name to the model and the guide where those take them.
        validation: the same for the validation split; a data module brings its own.
        max_epochs: passes over the data, 10 by default.
        max_steps: gradient steps at most; −1 for no limit.
        batch_size: sequences per step where ``data`` is a tensor.
        optimizer: parameters -> torch optimizer, or one of ``pyro.optim``; Adam at 1e-3 by default. A scheduler of
            Pyro's is stepped once an epoch.
        schedule: (optimizer, number of steps) -> learning-rate scheduler stepped once a step; ReduceLROnPlateau once an
            epoch, by the validation ELBO.
        objective: what is maximised, :class:`ELBO` by default; ``IWAE`` and ``DReG`` want ``num_particles`` above 1.
            Any (model, guide, num_particles) -> :class:`Objective`, or an ELBO of Pyro's with a differentiable loss,
            such as ``pyro.infer.Trace_ELBO``. Validation goes by the ELBO.
        warmup_steps: steps over which the weight of the KL rises from 0, at most half of the fit's: with another
            ``max_epochs`` it may rise anew.
        beta: weight of the KL after the warm-up; 1 for a bound of log p(x).
        num_particles: draws per sequence and step.
        frame_dropout: share of training sequences that the guide sees only in part, see :class:`Fitting`.
        subsample_frames: how many frames of a training sequence are decoded and scored in a step, or their share, a
            float below 1; drawn anew each time, and scaled up to all. The ELBO is right in expectation, and a step is
            cheaper. None, and validation, score all.
        gradient_clip: bound on the norm of the gradient.
        patience: stop after that many epochs without a better validation ELBO.
        directory: where checkpoints (``checkpoints/best.ckpt``, ``last.ckpt``) and logs (CSV, TensorBoard) go; None
            writes nothing. What another fit wrote there stays: a second one has ``checkpoints-v1`` and ``logs-v1``, and
            so has one that goes on from another file of ``checkpoints`` than ``last.ckpt``.
        resume: a ``last.ckpt`` to go on from. With the other arguments as they were, the fit ends as one that was
            never stopped, bit by bit: weights, optimizer, schedule, order of the data and random generators, the global
            ones and torch's that loaders and their samplers hold as ``generator``; what is drawn from others, in
            workers that persist too, is not in a checkpoint, and from within an epoch, as by ``max_steps`` or a
            Trainer's ``val_check_interval``, the rest of it is drawn anew or left out.
            Settings given otherwise than then win, such as a learning rate or patience; another optimizer, schedule or
            seed is refused. Another objective, beta, num_particles, frame_dropout, warmup_steps, gradient clipping or
            accumulation wins with a warning that names both, and so do other data and another batch size, which are
            refused in the middle of an epoch; of other validation data the best begins anew.
        seed: of everything random in the run; the global generators are then left as they were. None draws from those.
        matmul_precision: of matrix products while the fit lasts, as in ``torch.set_float32_matmul_precision``; None
            leaves what is set. With ``"medium"`` their operands are rounded to bfloat16, sums and all else are float32:
            faster on processors and GPUs that have instructions for it.
        capture: record a whole step once and replay it, so that a GPU does not wait for Python to launch kernels one
            by one; the weights are those of a fit without, but for rounding where a schedule moves the learning rate.
            ``"auto"`` where there is a GPU; True also on a CPU, as a trial: by a tape, which is no faster. What Python
            decides in a step is decided once: what reads a tensor's value, or changes from step to step, is noticed in
            the first steps, named in a warning, and not captured. Losses and gradients are then looked at whenever
            values are reported, before validations and checkpoints: the error names the step, and the weights are those
            of the last look.
        compile: compile a step with all that Python decides in it, by ``torch.compile``, which takes 15 seconds to two
            minutes and needs a C++ compiler; for a CPU, and in the place of ``capture``. Draws are those of a fit
            without, and losses and weights are to the rounding of sums: one step is compared, and where its gradients
            differ by more, or it cannot be compiled, a warning says why, and steps run one operation at a time. A fit
            that is resumed compiles anew, after three steps without, and so is alike to that rounding, not bit by bit.
        progress: show a progress bar with ELBO, reconstruction and KL in nats per frame.
        trainer: devices, precision, callbacks and loggers as :class:`TrainerOptions`; or a Trainer of Lightning's,
            whose own epochs, gradient clipping, loggers, callbacks and progress bar are then the fit's. It has all else
            that a fit has, history, best weights and resumable checkpoints included, and is left as it was but for the
            epochs that it has run.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: data that does not fit the model, or nothing to do.
        ValueError: ``resume`` is damaged, foreign, of another model or from a newer version.
        FileNotFoundError: ``resume`` does not exist.
        NonFiniteError: the objective or a gradient became infinite or NaN; the checkpoints are from before.

    Example:
        >>> import pyro_tvae
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> guide, x = pyro_tvae.default_guide(model), torch.rand(8, 3, 1, 4, 4)
        >>> options = TrainerOptions(accelerator="cpu", precision="bf16-mixed")
        >>> fit(model, guide, x, max_steps=10, progress=False, trainer=options).column("train/elbo")[0]
        [10]
    """
    refuse_inference_mode("fit")
    check_trainer(trainer, {"max_epochs": max_epochs, "gradient_clip": gradient_clip}, resume)
    max_epochs = 10 if max_epochs is None else max_epochs
    check_options(
        {
            "max_epochs": max_epochs,
            "max_steps": max_steps,
            "batch_size": batch_size,
            "warmup_steps": warmup_steps,
            "num_particles": num_particles,
        },
        {"beta": beta, "frame_dropout": frame_dropout},
        {"patience": patience, "seed": seed},
        {"resume": resume, "directory": directory},
    )
    # As Lightning would, which then wrote to another folder than the one that was looked into and is held.
    directory, resume = (None if path is None else Path(path).expanduser() for path in (directory, resume))
    if directory is not None:  # a callback may change the working directory
        directory = directory.absolute()
        check_directory(directory)
    check_precision(matmul_precision, gradient_clip)
    gradient_clip = None if gradient_clip is None else float(gradient_clip)  # Lightning takes no number of NumPy's
    if capture not in ("auto", True, False):
        raise ValueError(f"fit: capture is {capture!r}; expected 'auto', True or False.")
    if not isinstance(compile, bool):
        raise ValueError(f"fit: compile is {compile!r}; expected True or False.")
    check_optimizer(optimizer)
    check_makers(schedule, objective)
    check_store(guide)
    for part in (model, guide):
        others = part.claim_store() if isinstance(part, NamedModule) else []
        if others:
            warnings.warn(
                f"fit: Pyro's parameter store held other values of {others[0]}, of a former module of that name or "
                f"loaded from a file; this {type(part).__name__}'s own are trained. Call it once before, to take those "
                "over.",
                stacklevel=2,
            )
    validates = check_data({"data": data, "validation": validation}, patience)
    # Programs that are called as Pyro calls them put their parameters into its store, where the next one of the same
    # name, such as a second AutoNormal, would find them.
    with (
        in_turn(),
        own_randomness(seed, resume is not None),
        quiet(),
        plain_ends(),
        untouched_store(),
        ExitStack() as stack,
    ):
        logs_to_files = not isinstance(trainer, lightning.Trainer) and (trainer is None or trainer.logger is None)
        if ours := not isinstance(trainer, lightning.Trainer):
            trainer = make_trainer(
                trainer or TrainerOptions(),
                max_epochs=max_epochs,
                gradient_clip=gradient_clip,
                shares_data=not isinstance(data, lightning.LightningDataModule),
            )
        check_strategy(trainer.strategy)  # what "auto" led to
        if ours:  # a Trainer of the user's may be told to go on
            tell_of_used(cast(Any, trainer).callbacks, resumed=resume is not None)
        module = Fitting(
            model,
            guide,
            optimizer=optimizer,
            schedule=schedule,
            objective=objective,
            warmup_steps=warmup_steps,
            beta=beta,
            num_particles=num_particles,
            frame_dropout=frame_dropout,
            subsample_frames=subsample_frames,
            report_every=cast(Any, trainer).log_every_n_steps or 10,
            max_steps=max_steps,
        )
        stack.enter_context(as_they_were(module))
        module.train()  # a loaded model comes in evaluation mode, and Lightning trains it as it comes
        if any(parameter.is_inference() for parameter in module.parameters()):
            raise ValueError(
                "fit: model or guide were made under torch.inference_mode, so that they have no gradients; make them "
                "outside."
            )
        module.validates, module.seed, module.captures = validates, seed, capture
        module.compiles, module.begins = compile, ours and resume is None
        device = trainer.strategy.root_device
        source = _sources(module, data, validation, batch_size, device if capture else torch.device("cpu"))
        if resume is not None:
            _warn_of_ended(read_checkpoint(resume, module), trainer.max_epochs)
        with claimed(directory, resume, trainer.is_global_zero) as folder:
            keeping = Keeping(folder, resume, validates)
            keeping.check_no_other(trainer)
            if logs_to_files and folder is not None:
                trainer.loggers = file_loggers(folder)
            states = RandomStates(loaders=data, validation=validation)
            if isinstance(data, lightning.LightningDataModule):
                stack.enter_context(states.following(data))
            before = [Settings(), _Recorder(keeping.history), states]
            after = [*keeping.callbacks]
            if patience is not None:
                after.append(Patience("val/elbo", mode="max", patience=patience))
            if progress and trainer.progress_bar_callback is None:
                after.append(ProgressBar())
            if matmul_precision is not None:
                after.append(MatmulPrecision(matmul_precision))
            with lent(trainer, before, after), keeping.whatever_fails(module), restored(resume):
                trainer.fit(module, **source, ckpt_path=resume, weights_only=True)
                keeping.tell_of_lost()
                module.tell_of_untrained()
                if validates and not keeping.history.column("val/elbo")[0]:  # max_steps fell within the first epoch
                    source.pop("train_dataloaders", None)
                    trainer.validate(module, source.pop("val_dataloaders", None), verbose=False, **source)
                keeping.finish(module)
                if trainer.received_sigterm:  # after its last batch, where Lightning tells nobody
                    raise SystemExit(128 + signal.SIGTERM)
    for part in (model, guide):
        if isinstance(part, NamedModule):
            part.enter_store()
    module.zero_grad()  # as large as the weights, like each of Adam's moments, which the trainer would go on holding
    if ours:
        trainer.strategy.optimizers = []
    if module._before and module.steps_taken:
        warnings.warn(
            f"fit: no parameter has moved in {module.steps_taken} steps; look at the optimizer's learning rate.",
            stacklevel=3,
        )
    return keeping.history


def _warn_of_ended(checkpoint: dict[str, Any], max_epochs: int | None) -> None:
    epochs = checkpoint["epoch"] + (not checkpoint[KEY].get("course", {}).get("mid_epoch", False))
    if max_epochs is not None and 0 <= max_epochs < epochs:
        warnings.warn(
            f"fit: the checkpoint has had {epochs} epochs, and max_epochs is {max_epochs}, so that nothing is trained; "
            f"max_epochs counts from the beginning: give more than {epochs} to go on.",
            stacklevel=4,
        )


def _sources(module: Fitting, data: Any, validation: Any, batch_size: int, device: torch.device) -> dict[str, Any]:
    """What Lightning takes as data, after a look at the first batches."""
    if isinstance(data, lightning.LightningDataModule):
        return {"datamodule": data}
    model = module.objective.model
    sources = {"train_dataloaders": _loader(data, model, batch_size, shuffle=True, device=device)}
    if validation is not None:
        sources["val_dataloaders"] = _loader(validation, model, batch_size, shuffle=False, what="validation")
    first = peek(sources["train_dataloaders"])
    tell_of_mask(first)
    if first is not None:
        module.rehearse(first)
    return sources


def _loader(
    data: Tensor | DataLoader,
    model: TVAE,
    batch_size: int,
    shuffle: bool,
    what: str = "data",
    device: torch.device | None = None,
) -> DataLoader:
    if not isinstance(data, Tensor):
        first = peek(data)
        tell_of_mask(first)
        if first is not None and what != "data":
            check_batch(model, batch_of(first), what)
        return data
    if len(data) == 0:
        raise ValueError("fit: there are no sequences; expected at least one.")
    check_batch(model, Batch(data, None, {}), what)
    if device is not None and device.type == "cuda":
        data = placed(data, device)
    return DataLoader(TensorDataset(data), batch_size=batch_size, shuffle=shuffle)
