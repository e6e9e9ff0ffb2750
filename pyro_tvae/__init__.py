"""The Topographic VAE as a Pyro program: model, guides and the verbs one uses them with.

The modules in ``CONTENTS`` are the table of contents; what each offers is a name of the package itself, too. They are
loaded when first used, so that a command line that only prints its help does not wait for torch.
"""

from typing import TYPE_CHECKING

from .former_names import CLASSES
from .lazy import attach

CONTENTS = (
    "model",
    "guides",
    "topographies",
    "priors",
    "latents",
    "mixture_latents",
    "likelihoods",
    "networks",
    "convolution",
    "verbs",
    "storage",
    "lengths",
    "export",
    "parts",
)
FORMER = {old.removeprefix("pyro_tvae."): new.removeprefix("pyro_tvae.") for old, new in CLASSES.items()}

if TYPE_CHECKING:
    __version__: str
    from .convolution import *
    from .export import *
    from .guides import *
    from .latents import *
    from .lengths import *
    from .likelihoods import *
    from .mixture_latents import *
    from .model import *
    from .networks import *
    from .parts import *
    from .priors import *
    from .storage import *
    from .topographies import *
    from .verbs import *
else:
    __getattr__, __dir__ = attach(
        __name__, CONTENTS, below=("inference", "experiments", "distributions"), former=FORMER
    )
