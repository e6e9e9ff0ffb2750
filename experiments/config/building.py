"""Building: a configuration turned into data, model and guide, and these fitted as it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from pyro.optim import PyroOptim

from pyro_tvae import TVAE, Guide
from pyro_tvae.files import reading
from pyro_tvae.inference import History, TrainerOptions, fit
from pyro_tvae.inference.course import other_part, parts_of
from pyro_tvae.inference.optimizers import unscales
from pyro_tvae.judging import in_turn
from pyro_tvae.memory import exhausted
from pyro_tvae.wording import in_words

from ..datasets import SequenceDataModule
from .composition import make
from .errors import ConfigurationError
from .loggers import loggers

__all__ = ["Parts", "build", "check_fit", "fit_parts", "other_than_described"]


@dataclass(frozen=True)
class Parts:
    """What a configuration describes, built."""

    model: TVAE
    guide: Guide
    data: SequenceDataModule


# By name or number, as Lightning takes them; "true" ones other than 32 would convert the weights and not the data.
PRECISIONS = ("32-true", "32", 32, "bf16-mixed", "bf16", "16-mixed", "16", 16)
LONG = 10**6  # steps of a fit, to which any schedule fits
ENGINE = ("transformer-engine", "transformer-engine-float16")


def check_fit(config: DictConfig) -> None:
    """Raise ConfigurationError where no fit could compute as a configuration says, before anything is made for one."""
    precision, optimizer = config.fit.precision, make(config.optimizer.optimizer)
    if precision not in PRECISIONS and not (precision in ENGINE and find_spec("transformer_engine")):
        raise ConfigurationError(
            f"fit.precision is {precision!r}; expected 32-true, bf16-mixed or 16-mixed, since data and weights are "
            "float32."
        )
    if isinstance(optimizer, PyroOptim) or not callable(optimizer):
        return
    part = "optimizer"
    try:
        made = optimizer([torch.nn.Parameter(torch.zeros(1))])
        part, schedule = "schedule", make(config.optimizer.schedule)
        if schedule is not None:
            schedule(made, LONG)
    except Exception as error:  # torch checks some values, and stumbles over others in any way
        given = {key: value for key, value in config.optimizer[part].items() if not str(key).startswith("_")}
        settings = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ConfigurationError(
            f"optimizer.{part} cannot be made from {settings}: {in_words(error)}; look at these settings."
        ) from None
    if "32" not in str(precision) and config.fit.gradient_clip is not None and unscales(made):
        raise ConfigurationError(
            f"fit.gradient_clip goes with fit.precision={precision} only where the optimizer is not fused; add "
            "optimizer.optimizer.fused=false, or leave one of them out."
        )


def build(config: DictConfig, data: SequenceDataModule | None = None) -> Parts:
    """Build data, model and guide, the weights drawn from the configuration's seed."""
    data = make(config.data) if data is None else data
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise ConfigurationError(f"seed is {config.seed!r}; expected a whole number from 0 to 4294967295.")
    with in_turn():  # another thread may draw the weights of its own run
        seed_everything(config.seed, workers=True, verbose=False)
        return _parts(config, data)


def other_than_described(config: DictConfig, data: SequenceDataModule, model: TVAE, guide: Guide) -> str | None:
    """What model or guide have that the configuration describes otherwise, in words; None where nothing is seen."""
    try:
        with torch.random.fork_rng(devices=[]):
            parts = _parts(config, data)
    except Exception:  # what it names is not here, in whatever way: then nothing can be compared
        return None
    described, own = parts_of(parts.model, parts.guide), parts_of(model, guide)
    name = other_part(described, own)
    return None if name is None else f"{name} is {own[name]!r} there and {described[name]!r} here"


def _parts(config: DictConfig, data: SequenceDataModule) -> Parts:
    model = TVAE(
        data.frame_shape,
        data.n_frames,
        config.model.n_capsules,
        config.model.capsule_dim,
        make(config.topography),
        prior=make(config.prior),
        latent=make(config.latent),
        likelihood=make(config.likelihood),
        network=make(config.network),
        mu=config.model.mu,
        eps=config.model.eps,
        centered=config.model.centered,
    )
    return Parts(model, make(config.guide)(model), data)


def fit_parts(
    config: DictConfig, parts: Parts, directory: Path | None = None, callbacks: Sequence[Callback] = ()
) -> History:
    """Fit as a configuration says, from the last checkpoint in the directory where there is one.

    Raises:
        FileNotFoundError: there is only one of the best weights, which starting again would replace.
    """
    last = directory / "checkpoints" / "last.ckpt" if directory is not None else None
    begun = False
    if last is not None:
        with reading(last.parent):
            begun = last.is_file()
        if not begun:
            _leave_best(last)
    options = OmegaConf.to_container(config.fit, resolve=True)
    assert isinstance(options, dict)
    given = {field.name: options.pop(field.name) for field in fields(TrainerOptions) if field.name in options}
    trainer = TrainerOptions(**given, logger=loggers(config, directory) or None, callbacks=callbacks)
    return fit(
        parts.model,
        parts.guide,
        parts.data,
        optimizer=make(config.optimizer.optimizer),
        schedule=make(config.optimizer.schedule),
        objective=make(config.objective),
        directory=directory,
        resume=last if begun else None,
        seed=config.seed,
        trainer=trainer,
        **{str(name): value for name, value in options.items()},
    )


def _leave_best(last: Path) -> None:
    """Raise FileNotFoundError where the best weights are there without the last ones, unless they are of epoch 0.

    A process that was killed in its first epoch leaves such, and a fit that starts again makes them anew.
    """
    best = last.with_name("best.ckpt")
    if not best.is_file():
        return
    try:
        of_first = torch.load(best, weights_only=True, mmap=True)["epoch"] == 0
    except Exception as error:  # damaged in whatever way
        if exhausted(error):
            raise
        of_first = False
    if not of_first:
        raise FileNotFoundError(
            f"{best.parent} holds {best.name} and no {last.name}, which the training would go on from; put {last.name} "
            f"back, copy {best.name} to {last.name} there to go on from the best epoch, or train a new run in another "
            "folder."
        )
    # Else the fit would take it for another one's; a copy that lacks its last.ckpt may have no other weights.
    former = best.replace(best.with_suffix(".former"))
    print(
        f"{best.parent} holds no {last.name}: the training, which was in its first epoch, begins again; the weights "
        f"that were there are {former.name} now",
        flush=True,
    )
