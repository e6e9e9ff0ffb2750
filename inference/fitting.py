"""Fitting: a Lightning module around an objective, step by step."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import uuid
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import lightning.pytorch as lightning
import pyro
import pyro.infer
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.plugins.precision import DoublePrecision
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset

from pyro_tvae import TVAE, Guide
from pyro_tvae.model import frame_mask
from pyro_tvae.own_code import digests
from pyro_tvae.programs import is_bayesian

from .batches import Batch, batch_of, n_sequences, peek
from .callbacks import ProgressBar, Settings
from .capture import NOT_RECORDED, Capture, Recorder, per_step_needs, recorder_of
from .checkpoints import KEY, VERSION, forget_best, holdings, in_plain, stay_stopped
from .checks import NonFiniteError, check_batch, check_names, check_sequences, covariates, dry_run
from .compiling import Compiled, missing_compiler
from .course import CODE, check_course, check_untrained, described, differing, parts_of
from .objectives import ELBO, Objective, Terms
from .optimizers import (
    Clips,
    Optimizers,
    adam,
    check_optimizer,
    check_resumed,
    clip,
    make,
    settings,
    take_over,
    unscales,
)
from .pyro_elbos import adapted
from .soundness import NOTHING_SEEN, Moment, Soundness
from .subnormals import EVERY, sweep

__all__ = ["Fitting", "Objectives", "Schedules"]

Objectives = Callable[[TVAE, Guide, int], Objective]
Schedules = Callable[[Optimizer, int], LRScheduler | ReduceLROnPlateau]


class Fitting(lightning.LightningModule):
    """Maximises an objective per frame, the weight of its KL rising linearly from 0 over the warm-up.

    Args:
        model, guide, optimizer, schedule, objective, num_particles, beta, max_steps: as in :func:`fit`.
        warmup_steps: length of the KL warm-up; shortened to half the run where that is less.
        frame_dropout: share of training sequences of which the guide sees only a run of consecutive frames, of random
            length and start, while all frames are scored: the bound holds for every q, and a guide that has met gaps
            can forecast.
        subsample_frames: frames of every training sequence that are decoded and scored in a step, or their share.
        report_every: steps averaged into one reported training value.

    Example:
        >>> import pyro_tvae, torch
        >>> model = pyro_tvae.TVAE((1, 4, 4), n_frames=3, n_capsules=1, capsule_dim=3)
        >>> trainer = lightning.Trainer(
        ...     max_steps=2,
        ...     accelerator="cpu",
        ...     logger=False,
        ...     enable_checkpointing=False,
        ...     enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> loader = torch.utils.data.DataLoader(torch.rand(8, 3, 1, 4, 4), batch_size=4)
        >>> trainer.fit(Fitting(model, pyro_tvae.default_guide(model)), loader)
    """

    def __init__(
        self,
        model: TVAE,
        guide: Guide,
        *,
        optimizer: Optimizers | None = None,
        schedule: Schedules | None = None,
        warmup_steps: int = 1500,
        objective: Objectives | pyro.infer.ELBO = ELBO,
        num_particles: int = 1,
        beta: float = 1.0,
        frame_dropout: float = 0.0,
        subsample_frames: int | float | None = None,
        report_every: int = 10,
        max_steps: int = -1,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer)
        if isinstance(guide, Guide):
            guide.check(model)
        self.objective, self.final_beta = adapted(objective)(model, guide, num_particles), beta
        self.optimizer, self.schedule = optimizer if optimizer is not None else adam, schedule
        if not 0 <= frame_dropout <= 1:
            raise ValueError(f"frame_dropout is {frame_dropout!r}; expected a share between 0 and 1.")
        self.warmup_steps, self.frame_dropout, self.report_every = warmup_steps, frame_dropout, report_every
        self.subsample_frames = subsample_frames
        self._n_scored = self._count_scored()
        self.max_steps = max_steps
        self.validates = True
        self.begins = False  # anew, whatever Lightning finds to go on from
        self.seed: int | None = None
        self.fit_name: str | None = uuid.uuid4().hex[:16]  # by which files know that they are of one fit
        self._recent: list[Tensor] = []
        self._clips: Clips = []
        self._before: list[tuple[Tensor, Tensor]] = []  # weights and what they add up to, until one of them has moved
        self._built: dict[str, Any] = {}
        self._stored: dict[str, Any] | None = None
        self._course: dict[str, Any] = {}
        self._parts: dict[str, Any] = {}
        self._former: dict[str, Any] | None = None  # the course of the fit that is gone on with
        self._rehearsed = False
        self._validated = 0  # batches
        self.steps_taken = 0
        self.soundness = Soundness(self, self.objective.model.likelihood, type(self.objective).__name__)
        self.capture: Capture | None = None
        self.captures: bool | str = False  # or True, or "auto": where there is a GPU
        self.compiles = False
        self._values = torch.zeros(3)  # of the latest step, where it may be captured
        self._render: Callable[[Any], Any] | None = None
        self._moment = Moment(0, 0, 0)

    @property
    def n_steps(self) -> float:
        """Length of the whole run in steps."""
        epochs = self.trainer.estimated_stepping_batches if self._trainer is not None else math.inf
        return min(epochs, self.max_steps) if self.max_steps >= 0 else epochs

    @property
    def beta(self) -> float:
        """Weight of the KL at the current step."""
        length = min(self.warmup_steps, self.n_steps / 2)
        return self.final_beta * (min(1.0, (self.global_step + 1) / length) if length >= 1 else 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.capture is not None and self.capture.replaying:
            self.capture.play()
            return -self._values[2]
        if self.capture is not None:
            batch = self.capture.batch(batch)
        parts = batch_of(batch if self._render is None else self._render(batch))
        x, self._moment = parts.x, Moment(self.global_step, batch_idx, self.current_epoch)
        self.objective.model.check(x)
        if self.capture is None:
            self.objective.beta = self.beta
        terms, n_frames = self._terms(parts, self._context(x), self._subsample(x))
        loss = -_per_frame(terms.objective, n_frames)
        values = torch.stack([_per_frame(term, n_frames).detach() for term in terms])
        self.soundness.of_terms(values, n_frames if isinstance(n_frames, Tensor) else None, parts, self._moment)
        if self.capture is None:
            self._recent.append(values)
        else:
            self._values.copy_(values)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.capture is not None:
            self.soundness.expect(Moment(self.global_step, batch_idx, self.current_epoch))
            self.objective.beta = self.capture.number("beta", self.beta, self.device)
            self.capture.offer(batch)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if self.global_step % EVERY == 0:  # before the step, so that a resumed run sweeps when one left alone does
            sweep(self.trainer.optimizers[0])
        step = partial(super().optimizer_step, epoch, batch_idx, optimizer, optimizer_closure)
        if self.capture is None or optimizer_closure is None:
            step()
        else:
            # Validation would ask the device at every step; where steps stay eager it may.
            with nullcontext() if self.capture.fault else pyro.validation_enabled(False):
                self.capture.step(step, optimizer_closure)
            self._recent.append(self._values.clone())
        if (self.global_step + 1) % self.report_every == 0:
            self.settle()
            self._note_movement()
            self._report_recent()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.capture is None or not self.capture.replaying:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        if self.capture is None or not self.capture.replaying:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def settle(self, answer: bool = False) -> None:
        """Raise what was unsound since the last look, with the weights of then; or only put them back."""
        optimizers = self.trainer.optimizers if self._trainer is not None else []
        error = self.soundness.settle(optimizers[0] if optimizers else None)
        if error is not None and not answer:
            raise error

    def _count_scored(self) -> int | None:
        """How many frames of a sequence a step scores, None for all; raises ValueError where that makes no sense."""
        n, model = self.subsample_frames, self.objective.model
        if n is None:
            return None
        whole = isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= model.n_frames
        if not whole and not (isinstance(n, float) and 0 < n < 1):
            raise ValueError(
                f"subsample_frames is {n!r}; expected 1 to {model.n_frames} frames, a share of them between 0 and "
                "1, or None for all."
            )
        if not isinstance(self.objective, ELBO):
            raise ValueError(
                f"subsample_frames is {n}, and the objective {type(self.objective).__name__} is no average over "
                "frames, so that a part of them does not stand for all; use ELBO, or leave it out."
            )
        if "subsample" not in inspect.signature(type(model).forward).parameters:
            raise ValueError(
                f"subsample_frames is {n}, and the forward of {type(model).__name__} takes no 'subsample'; give it "
                "one, as TVAE.forward has, or leave subsample_frames out."
            )
        return int(n) if whole else max(1, round(n * model.n_frames))

    def _subsample(self, x: Tensor) -> Tensor | None:
        """Numbers of the frames to be scored, (B, n), all equally likely; None for all."""
        if self._n_scored is None:
            return None
        return torch.rand(x.shape[0], self.objective.model.n_frames, device=x.device).argsort(-1)[:, : self._n_scored]

    def _terms(
        self, parts: Batch, shown: Tensor | None = None, subsample: Tensor | None = None
    ) -> tuple[Terms, int | Tensor]:
        """Terms of a batch, and the frames they are of: in each sequence, or in the batch where some are missing."""
        x, observed = parts.x, parts.observed
        model, guide = self.objective.model, self.objective.guide
        options: dict[str, Any] = covariates(parts.others, model, guide) if parts.others else {}
        n_frames: int | Tensor = model.n_frames
        if observed is not None:
            observed = frame_mask(observed, len(x), model.n_frames).to(x.device).expand(len(x), -1)
            n_frames = observed.sum()
            x = torch.where(observed[..., None, None, None], x, model.likelihood.blank)
            options["observed"] = observed
        if shown is not None:
            options["shown"] = shown
        if subsample is not None:
            options["subsample"] = subsample
        try:
            return self.objective(x, **options), n_frames
        except ValueError as error:
            if not any(words in str(error) for words in ("to satisfy the constraint", "to be within the support")):
                raise
            # A distribution was handed what it cannot take; its own message prints every number of the tensor.
            self.soundness.check_pixels(parts, self._moment)
            sentence, infinite = str(error), re.compile(r"\b(nan|inf)\b|\.\.\.")
            if not infinite.search(sentence.partition("invalid values:")[2]):
                sentence = " ".join(sentence.partition(", but found")[0].split())
                raise ValueError(
                    f"batch {self._moment.batch} of epoch {self._moment.epoch}: {sentence}; look at what model and "
                    "guide make of that batch, such as a label that is none of the classes."
                ) from None
            sound = bool(x.isfinite().all())
            cause = "an encoder's output" if sound else "the data"
            remedy = "lower the learning rate or set gradient_clip" if sound else "look at that batch, and mend it"
            raise NonFiniteError(f"{cause} is not finite at {self._moment}; {remedy}.") from None

    def _context(self, x: Tensor) -> Tensor | None:
        """Frames the guide may see, (B, S); None for all."""
        if self.frame_dropout == 0:
            return None
        n_sequences, n_frames = x.shape[0], self.objective.model.n_frames
        length = torch.randint(1, n_frames + 1, (n_sequences, 1), device=x.device)
        wraps = self.objective.model.topography.boundary == "circular"
        starts = n_frames if wraps else n_frames + 1 - length
        start = (torch.rand(n_sequences, 1, device=x.device) * starts).long()
        whole = torch.rand(n_sequences, 1, device=x.device) >= self.frame_dropout
        return ((torch.arange(n_frames, device=x.device) - start) % n_frames < length) | whole

    def _report_recent(self) -> None:
        reconstruction, kl, objective = torch.stack(self._recent).mean(0).tolist()
        self._recent.clear()
        values = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl, "objective": objective}
        values = {name: value for name, value in values.items() if not math.isnan(value)}  # Pyro's ELBOs say but one
        hook, self._current_fx_name = self._current_fx_name, "training_step"  # for Lightning they are the step's
        self.log_dict(values, prog_bar=True, logger=False)
        self.log_dict({f"train/{name}": value for name, value in values.items()} | {"beta": self.beta})
        self._current_fx_name = hook

    def on_validation_start(self) -> None:
        self.settle()
        self._validated = 0

    def on_validation_epoch_end(self) -> None:
        trainer: Any = self.trainer
        if not trainer.sanity_checking:
            n = sum(trainer.num_val_batches)
            _check_all_came("validation loader", trainer.val_dataloaders, self._validated, n, self.current_epoch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        parts = batch_of(batch)
        self._moment = Moment(self.global_step, batch_idx, self.current_epoch)
        self.objective.model.check(parts.x)
        of_sequences, n_frames = self._terms(parts)
        terms = Terms(*(_per_frame(term, n_frames) for term in of_sequences))
        self.soundness.check_pixels(parts, self._moment)
        n = len(parts.x) * n_frames if isinstance(n_frames, int) else int(n_frames)
        if not n:
            raise ValueError(NOTHING_SEEN.format(batch_idx))
        values = {"val/elbo": terms.elbo, "val/reconstruction": terms.reconstruction, "val/kl": terms.kl}
        self.log_dict(values, batch_size=n, sync_dist=True)
        self._validated += 1

    # Not the Trainer's own limit: with one, it resumes in the wrong epoch and stops early.
    def on_train_start(self) -> None:
        if self._stored is not None:
            scheduler = next((config.scheduler for config in self.trainer.lr_scheduler_configs), None)
            told = take_over(self.trainer.optimizers[0], scheduler, self._built, self._stored)
            if told:
                warnings.warn(f"fit: the optimizer goes on with {'; '.join(told)}.", stacklevel=2)
            self._stored = None
        if self.trainer.checkpoint_callbacks or self._former is not None:
            self._course = self._described()
            self._parts = parts_of(self.objective.model, self.objective.guide)
        else:
            digests(self.objective)  # of code as it runs now, for a file that is saved after it was edited
        if self.trainer.global_step:
            settings = [one for one in cast(Any, self.trainer).callbacks if isinstance(one, Settings)]
            stay_stopped(self.trainer, {key for one in settings for key in one.changed})
        if self._former is not None:
            check_course(self._course, self._former, mid_epoch=bool(self._former.get("mid_epoch")))
            if cast(Any, self.trainer).reload_dataloaders_every_n_epochs:
                warnings.warn(
                    "fit: goes on in another order than the fit that was stopped, since Lightning draws otherwise "
                    "where loaders are made anew (reload_dataloaders_every_n_epochs).",
                    stacklevel=2,
                )
            if "validation" in differing(self._course, self._former):
                self._forget_the_best()
            for callback in cast(Any, self.trainer).callbacks:
                if hasattr(callback, "adopt"):
                    callback.adopt(self.trainer, self._course)
            self._former = None
        validated = self.validates and self.trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined()
        check_sequences(self.objective.guide, self.trainer.num_training_batches, validated)
        if (
            self.trainer.checkpoint_callbacks
            and self.trainer.num_training_batches == self.trainer.val_check_batch == math.inf
        ):
            warnings.warn(
                "fit: the data do not say how many batches they have, and until an epoch has ended nothing is "
                "validated and there is no checkpoint to go on from; where they have no end, let their iterator end "
                "after as many as an epoch is to have.",
                stacklevel=2,
            )
        number = n_sequences(self.trainer.train_dataloader)
        if number:
            self.objective.dataset_size = number
        elif getattr(self.objective, "dataset_size", None) is None and is_bayesian(self.objective.model):
            warnings.warn(
                "fit: these data do not say how many sequences they are, so that the KL of random weights counts whole "
                "in every batch; give objective=partial(ELBO, dataset_size=…), or a DataLoader of data with a length.",
                stacklevel=2,
            )
        self._before = [(p, _bits(p)) for p in self.parameters() if p.requires_grad]
        self._begin_capture()
        self._stop_at_the_limit()

    def _begin_capture(self) -> None:
        """Get ready to capture or compile steps, where that was asked for and nothing stands against it."""
        looks = self.compiles and self.device.type == "cpu"  # which costs nothing there
        if self.compiles:
            recorder: Recorder | None = Compiled(self.settle if looks else lambda: None, self._tell_of_compiling)
        else:
            recorder = recorder_of(self.captures, self.device)
        if recorder is None:
            return
        trainer: Any = self.trainer
        missing = missing_compiler(self.device) if self.compiles else ""
        if needs := missing or per_step_needs(trainer, Callback):
            warnings.warn(NOT_RECORDED.format(recorder.verb, needs), stacklevel=2)
            return
        scheduled = bool(trainer.lr_scheduler_configs)
        self.capture = Capture(recorder, trainer.optimizers[0], scheduled=scheduled)
        self._values = torch.zeros(3, dtype=self.objective.model.like.dtype, device=self.device)
        self.soundness.deferred = True
        if not looks:
            self.soundness.keep(trainer.optimizers[0])
        self._render = getattr(trainer.datamodule, "rendered", None)

    def _tell_of_compiling(self, seconds: float | None) -> None:
        for callback in cast(Any, self.trainer).callbacks:
            if isinstance(callback, ProgressBar):
                callback.tell_of_compiling(seconds)

    @property
    def renders(self) -> bool:
        """Whether a data module that has ``rendered`` may leave that to the step, to be captured with it."""
        return self._render is not None

    def on_train_end(self) -> None:
        self._note_movement()

    def tell_of_untrained(self) -> None:
        """Warn where a checkpoint of a fit's end was given other settings, which nothing was trained with."""
        if self._former is not None:  # no training has begun, by which it is looked at
            check_untrained(self._described(), self._former)

    def _note_movement(self) -> None:
        if self._before and any(not torch.equal(_bits(now), before) for now, before in self._before):
            self._before = []

    def _described(self) -> dict[str, Any]:
        """What this fit is told and shown."""
        loaders: Any = self.trainer.val_dataloaders if self.validates else None
        validation = loaders[0] if isinstance(loaders, list | tuple) and len(loaders) == 1 else loaders
        limit = self.trainer.limit_val_batches
        schedules = [getattr(config.scheduler, "lr_lambdas", ()) for config in self.trainer.lr_scheduler_configs]
        objective = getattr(self.objective, "loss", self.objective)  # of Pyro's, whose particles it says itself
        return {
            "objective": type(objective).__name__,
            "beta": self.final_beta,
            "num_particles": getattr(objective, "num_particles", 1),
            "frame_dropout": self.frame_dropout,
            "subsample_frames": self.subsample_frames,
            "warmup_steps": self.warmup_steps,
            "gradient_clip": self.trainer.gradient_clip_val,
            "gradient_clip_algorithm": str(self.trainer.gradient_clip_algorithm or "norm"),
            "precision": self.trainer.precision,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "limit_train_batches": self.trainer.limit_train_batches,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "processes": self.trainer.world_size,  # each takes a part of an epoch's batches
            "frozen": [
                name.removeprefix("objective.") for name, value in self.named_parameters() if not value.requires_grad
            ],
            **described(self.trainer.train_dataloader),
            CODE: digests(self.objective, functions=itertools.chain(*schedules)),
            **({"validation": {**shown, "limit": limit}} if (shown := described(validation).get("data")) else {}),
        }

    def _forget_the_best(self) -> None:
        """Compare no values over two sets of validation sequences."""
        for callback in cast(Any, self.trainer).callbacks:
            if isinstance(callback, EarlyStopping):
                forget_best(callback, self.trainer)
            if hasattr(callback, "forget"):
                callback.forget()
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                config.scheduler._reset()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps_taken += 1
        self._stop_at_the_limit()

    def on_train_epoch_end(self) -> None:
        self.settle()
        trainer = self.trainer
        if not (trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step):
            seen = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            _check_all_came("loader", trainer.train_dataloader, seen, trainer.num_training_batches, self.current_epoch)

    def _stop_at_the_limit(self) -> None:
        if 0 <= self.max_steps <= self.global_step:
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:  # float16's leaves out infinite gradients
            self.soundness.of_gradients(self._moment)
        if self.capture is not None:
            self.capture.cut()

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        clip(self._clips)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.settle()  # what is not sound is not written
        # The values since the last report too: it averages steps of both sides of an interruption.
        checkpoint[KEY] = {
            "version": VERSION,
            "fit": self.fit_name,
            "recent": list(self._recent),
            "optimizer": self._built,
            "seed": self.seed,
        }
        if self._course:
            ended = self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            checkpoint[KEY] |= {"course": {**self._course, "mid_epoch": not ended}, "parts": self._parts}
        checkpoint |= in_plain(checkpoint)
        checkpoint[KEY]["holds"] = holdings(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.begins:
            raise ValueError(
                f"fit: Lightning would go on from {cast(Any, self.trainer).ckpt_path}, and resume is None; move that "
                "file away, leave out the callback or the variable of the environment that chose it, or give it as "
                "resume."
            )
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, DoublePrecision):  # else weights would be rounded, which Lightning puts in place before
            plugin.convert_module(self)
        self._recent = [value.to(self.device) for value in checkpoint[KEY]["recent"]]
        self.fit_name = checkpoint[KEY].get("fit")
        self._stored = checkpoint[KEY].get("optimizer") or None
        self._former = checkpoint[KEY].get("course")
        seed = checkpoint[KEY].get("seed", self.seed)
        if self.seed is not None and seed != self.seed:
            raise ValueError(
                f"fit: cannot resume with seed={self.seed}, the checkpoint is of a fit with seed={seed}, whose random "
                "generators it goes on with; give that one, or leave it out."
            )
        self.seed = seed

    def rehearse(self, batch: Any, what: str = "the first batch") -> None:
        """Look at a batch and run guide and model on it once, which leaves no trace but a guide's new parameters."""
        parts = batch_of(batch)
        model, guide = self.objective.model, self.objective.guide
        check_batch(model, parts, what)
        check_names(parts.others, model, guide)
        dry_run(self, model, guide, parts, covariates(parts.others, model, guide))
        self._rehearsed = True

    def _look_at_data(self) -> None:
        """Check the first batches of the trainer's own loaders."""
        trainer, loops = cast(Any, self.trainer), (self.trainer.fit_loop, self.trainer.fit_loop.epoch_loop.val_loop)
        for loop in loops:
            if loop._data_source.is_defined():  # a Trainer of one's own may have no validation
                loop.setup_data()
        given = {"the first batch": trainer.train_dataloader, "validation": trainer.val_dataloaders}
        for what, loaders in given.items():
            many = loaders if isinstance(loaders, list | tuple) else [loaders]
            empty = not many or any(sized_len(one) == 0 for one in many)
            if empty and what == "validation" and trainer.datamodule is not None and self.validates:
                raise ValueError(
                    "fit: the data module's val_dataloader has no batches; give it sequences, or leave it out."
                )
            if what == "validation" and len(many) > 1:
                raise ValueError(
                    f"fit: there are {len(many)} validation loaders, and the best weights are those of one; expected "
                    "one loader, such as of a torch.utils.data.ConcatDataset."
                )
            for batch in map(peek, many):
                if batch is None:
                    continue
                moved = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                if what == "validation":
                    check_batch(self.objective.model, batch_of(moved), what)
                else:
                    self.rehearse(moved)

    def configure_optimizers(self) -> Any:
        if self._trainer is not None and not self._rehearsed:
            self._look_at_data()
        optimizer, scheduler, self._clips = make(self.optimizer, self._by_name())
        if self._clips_scaled(optimizer):
            if self.optimizer is not adam:
                raise ValueError(
                    "fit: a fused optimizer unscales float16's gradients in its step, after they were to be clipped; "
                    f"make the {type(optimizer).__name__} with fused=False, leave gradient clipping out, or choose "
                    "precision='bf16-mixed'."
                )
            optimizer = make(partial(torch.optim.Adam, lr=1e-3, fused=False), self._by_name()).optimizer
        interval = "epoch"
        if self.schedule is not None:
            if scheduler is not None:
                raise ValueError(
                    "fit: Pyro's optimizer brings a scheduler, and schedule another; leave one of them out."
                )
            if math.isinf(self.n_steps):
                raise ValueError("fit: a schedule needs to know the end of the run; give max_epochs or max_steps.")
            scheduler, interval = self.schedule(optimizer, int(self.n_steps)), "step"
            if not isinstance(scheduler, LRScheduler | ReduceLROnPlateau):
                raise TypeError(
                    f"fit: schedule made a {type(scheduler).__name__}; expected that it returns a learning-rate "
                    "scheduler of torch's."
                )
        self._built = settings(optimizer, scheduler)
        if self._stored is not None:
            check_resumed(self._built, self._stored)
        if scheduler is None:
            return optimizer
        watched: dict[str, Any] = {}
        if isinstance(scheduler, ReduceLROnPlateau):
            if scheduler.mode != "max" or not self.validates:
                raise ValueError(
                    "fit: ReduceLROnPlateau watches val/elbo, which is better when it is higher; give it mode='max' "
                    "and the fit validation data."
                )
            watched, interval = {"monitor": "val/elbo"}, "epoch"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval, **watched}}

    def _clips_scaled(self, optimizer: Optimizer) -> bool:
        """Whether gradients would be clipped while they are still scaled up for float16."""
        trainer = self._trainer
        if trainer is None or getattr(trainer.precision_plugin, "scaler", None) is None:
            return False
        return bool(trainer.gradient_clip_val or self._clips) and unscales(optimizer)

    def _by_name(self) -> dict[str, Tensor]:
        """Parameters by the names that they have in Pyro's store."""
        names = {}
        for part in ("model", "guide"):
            names[f"objective.{part}"] = getattr(getattr(self.objective, part), "_pyro_name", "") or part
        parameters: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            owner = ".".join(name.split(".", 2)[:2])
            parameters[names[owner] + name.removeprefix(owner) if owner in names else name] = parameter
        return parameters


def _check_all_came(what: str, loader: object, seen: int, n: float, epoch: int) -> None:
    """Raise ValueError where Python took an error of the user's data for their end, or a stream has no second one."""
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset) and seen < n:
        raise ValueError(
            f"fit: the {what} gave {seen} of its {n} batches in epoch {epoch}; a data set that raises StopIteration is "
            "taken to be at its end: let it raise another error, or say how long it is."
        )
    if not seen and n:
        raise ValueError(
            f"fit: the {what} gave no batch in epoch {epoch}; data that are a stream are read in every epoch: let "
            "their __iter__ make a new iterator each time."
        )


def _per_frame(term: Tensor, n_frames: int | Tensor) -> Tensor:
    """Nats per frame of terms (B,): the sequences' mean by their length, or their sum by all frames that exist."""
    return term.mean() / n_frames if isinstance(n_frames, int) else term.sum() / n_frames


def _bits(parameter: Tensor) -> Tensor:
    """The sum of a parameter's bits, read as whole numbers: changes with any of its values, and takes no room."""
    size = parameter.element_size()
    whole = torch.int32 if size % 4 == 0 else torch.int16 if size % 2 == 0 else torch.uint8
    return parameter.detach().flatten().view(whole).sum(dtype=torch.int32)  # else a copy is made, of twice its size
