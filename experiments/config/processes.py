"""Processes: which of several that train together this one is, by its surroundings and by what a configuration says."""

from __future__ import annotations

import os
from dataclasses import fields

from omegaconf import DictConfig, OmegaConf

from pyro_tvae.wording import in_words

from .errors import ConfigurationError

__all__ = ["place_among"]

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # which Lightning goes by, in its order
TASKS = "SLURM_NTASKS"


def place_among(config: DictConfig) -> tuple[int, int]:
    """The rank of this process, and of how many that were started from outside; (0, 1) where no variable says so.

    A process that is not the first keeps nothing. So it is taken for one only where the configuration asks for several.

    Raises:
        ConfigurationError: a variable of the environment says so, and the configuration asks for one process; or
            Lightning can make nothing of the two.
    """
    told = [name for name in (*RANKS, TASKS) if name in os.environ]
    if not told or (told == [TASKS] and os.environ[TASKS] == "1"):
        return 0, 1
    said = ", ".join(f"{name}={os.environ[name]}" for name in told)
    asked = f"fit.devices={config.fit.devices} fit.strategy={config.fit.strategy}"
    remedy = (
        f"for a run of its own give the command without {'it' if len(told) == 1 else 'them'}: env "
        f"{' '.join(f'-u {name}' for name in told)} pyro-tvae …; for one run of several processes set fit.devices to "
        "their number on a machine, and fit.strategy=ddp."
    )
    ranks = [os.environ[name] for name in told if name != TASKS]
    if not all(rank.isdecimal() for rank in ranks):  # at which Lightning could not even be imported
        raise ConfigurationError(f"{said} in the environment is no number of a process; {remedy}")
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # takes seconds

    from pyro_tvae.inference import TrainerOptions
    from pyro_tvae.inference.trainer import make_trainer

    options = OmegaConf.to_container(config.fit, resolve=True)
    assert isinstance(options, dict)
    names = ("accelerator", "devices", "strategy", "precision")
    given = {one.name: options[one.name] for one in fields(TrainerOptions) if one.name in names}
    try:
        trainer = make_trainer(TrainerOptions(**given), max_epochs=1, gradient_clip=None, shares_data=False)
        rank, number = int(trainer.global_rank), int(trainer.world_size)
    # What SLURM says is incomplete, or of another number.
    except (KeyError, MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{said} in the environment and {asked} do not go together ({in_words(error).rstrip('.')}); {remedy}"
        ) from None
    if number == 1 and ranks and int(ranks[0]):
        raise ConfigurationError(
            f"{said} in the environment says that this process helps another one, and {asked} asks for one process, "
            f"so nothing would be kept; {remedy}"
        )
    return rank, number
