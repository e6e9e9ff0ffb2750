"""Studies: the paper's tables and figures, comparisons of parts, and learning curves, as rows to run and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["PAPER", "STUDIES", "Study", "chosen", "home"]


@dataclass(frozen=True)
class Study:
    """Rows to run and to compare: as a table under one recipe, or as learning curves of several.

    Attributes:
        title: heading of the table.
        rows: name -> overrides of the row.
        shared: overrides of all rows.
        budgets: whether the presets of the group ``budget`` apply; else the recipe is in ``shared``.
        annealing: fields of :class:`.Annealing` for rows whose guide allows it, and ``sequences``.
        reference: the row whose fitted model every row's guide is fitted to once more, with its weights held: on one
            log p(x) the bounds of different guides compare. It comes first.
        drawing: how each run becomes a figure, one of :data:`.paper_figures.DRAWINGS`; None for a table.
        labels: row -> what figures call it, of learning curves: what is judged is a few moments of every run's
            training, see :mod:`.learning_curves`. None for all others, whose runs are judged at their end.
    """

    title: str
    rows: Mapping[str, Sequence[str]]
    shared: Sequence[str] = ()
    budgets: bool = True
    annealing: Mapping[str, int] | None = None
    reference: str | None = None
    drawing: str | None = None
    labels: Mapping[str, str] | None = None


def _experiments(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: (f"experiment={name}",) for name in names}


def _table(data: str) -> dict[str, tuple[str, ...]]:
    kinds = ("tvae_lhalf", "tvae_lpartial", "tvae_lshort", "bubbles", "tvae_l0", "nontvae")
    return _experiments(*(f"{kind}_{data}" for kind in kinds))


def _figure(title: str, drawing: str, *names: str) -> Study:
    return Study(title, _experiments(*names), drawing=drawing)


def _learning_curves(
    title: str, rows: Mapping[str, tuple[str, Sequence[str]]], annealing: Mapping[str, int] | None = None
) -> Study:
    """Learning curves of recipes: row -> its label in figures, and the overrides of its runs."""
    labels = {row: label for row, (label, _) in rows.items()}
    recipes = {row: overrides for row, (_, overrides) in rows.items()}
    return Study(title, recipes, budgets=False, annealing=annealing, labels=labels)


GAUSSIAN, GAMMA = "prior=gaussian", "prior=gamma"
AS_LOUD = ("guide.initial_z_log_variance=null", "guide.vote_gain=1")  # z and votes start alike
# An encoder each for z and for the energies.
ORBIT = ("prior=orbit", "guide=orbit", "guide.shared_trunk=false", *AS_LOUD)
ON_GAUSSIAN = ("mean_field", "shared_trunk", "sequence", "low_rank", "conditional", "flow", "semi_amortized")
ANNEALING = {"sequences": 32, "num_chains": 8, "num_temperatures": 300}
# The recipe of records that were made so.
BEFORE = ("optimizer=adam", "network.activation=relu", "fit.subsample_frames=null")
# One generative model for all rows: where neighbourhoods are disjoint orbits, Gaussian u, Gamma(½, ½) energies and one
# χ² energy per orbit give x the same law, so that rows differ in the variables that the guide has to infer alone.
PARTS = (
    "+data.source.size=14",
    "data.transformations.rotation=[0,60,120,180,240,300]",
    "data.transformations.scale=null",
    "data.n_frames=6",
    "data.batch_size=16",
    "data.n_test=128",
    "data.n_validation=64",
    "model.n_capsules=4",
    "model.capsule_dim=6",
    "model.mu=30",
    "model.centered=false",
    "fit.max_epochs=-1",
    "fit.max_steps=4000",
    "fit.warmup_steps=1000",
    "fit.frame_dropout=0.0",
    *BEFORE,
    "baseline.enabled=false",
)
SIZE = (
    "data.n_validation=96",
    "data.n_test=500",
    "model.n_capsules=18",
    "model.capsule_dim=18",
    "baseline.enabled=false",
    "fit.max_epochs=-1",
)
SHORT = (*SIZE, "data.n_train=4000", "fit.max_steps=7000")
LONG = (*SIZE, "data.n_train=20000", "fit.max_steps=15000")
# Adam, q's variances small at first, and a KL warm-up: what gets the published models off their plateau.
OURS = ("optimizer=adam", "guide.initial_log_variance=-5.0", "fit.warmup_steps=1500")
LPARTIAL, LHALF, PLAIN = (f"experiment={kind}_mnist" for kind in ("tvae_lpartial", "tvae_lhalf", "nontvae"))
# The quickstart's recipe at the paper's size.
NOW = ("data=mnist", "fit.frame_dropout=0.3", "model.mu=100", "model.centered=true")
ORBITS = (*NOW, "fit.warmup_steps=3000", *BEFORE)
FAST = ("fit.warmup_steps=500", "fit.max_steps=3600")
WHOLE = ("fit.frame_dropout=0", "fit.warmup_steps=500", "fit.max_steps=30000")
NO_TOPOGRAPHY = ("experiment=plain_vae", "guide.initial_log_variance=0", "fit.frame_dropout=0", "model.centered=false")
# A guide that has met gaps forecasts, and half of the frames say what all say. Length and rate are those of the records
# kept, which were made before the budget of an hour had this recipe.
PARTLY = ("fit.frame_dropout=0.3", "fit.warmup_steps=1000", "fit.max_steps=3600", "optimizer=adam")
GENERALIZATION = "tvae_lpartial_mnist_generalization"

STUDIES: dict[str, Study] = {
    "table1": Study("Table 1: MNIST, one of rotation, hue and scale moves", _table("mnist")),
    "table2": Study("Table 2: dSprites, one of x, y, orientation and scale moves", _table("dsprites")),
    "fig1": _figure("Fig. 1: unseen frames, forecast by rolling capsules", "forecast", GENERALIZATION),
    "fig3": _figure("Fig. 3: MNIST on a torus, what every unit prefers", "map", "tvae_2d_mnist"),
    "fig4": _figure("Fig. 4: one factor at a time", "traversals", "tvae_lpartial_mnist", "tvae_lpartial_dsprites"),
    "fig6": _figure(
        "Fig. 6: rotation and hue together, after training on one factor at a time", "traversals", GENERALIZATION
    ),
    "fig22": _figure(
        "Fig. 22: rotation and hue together, in training too", "traversals", "tvae_lpartial_rotcolor_mnist"
    ),
    "fig23": _figure("Fig. 23: perspective and hue together", "traversals", "tvae_lpartial_perspective_mnist"),
    "radial": Study(
        "Table 1's capsules, whose neighborhoods overlap, under the guide of pooled radii",
        {
            **{
                kind: (f"experiment=tvae_{kind}_mnist", "guide=radial", "guide.initial_log_variance=-5", *PARTLY)
                for kind in ("lhalf", "lpartial", "lshort")
            },
            # It could not use hidden frames.
            "plain_vae": (
                PLAIN,
                *PARTLY,
                "guide.initial_log_variance=0",
                "fit.frame_dropout=0",
                "model.centered=false",
            ),
        },
    ),
    "guides": Study(
        "Guides: one generative model (orbits), one recipe",
        {
            "orbit": ORBIT,
            **{name: (GAUSSIAN, f"guide={name}") for name in ON_GAUSSIAN},
            "gamma": (GAMMA, "guide=gamma"),
            "conditional_orbit": ("prior=orbit", "guide=conditional_orbit"),
            "orbit_covariance": ("prior=orbit", "guide=orbit_covariance"),
        },
        PARTS,
        budgets=False,
        annealing=ANNEALING,
        reference="orbit",
    ),
    "priors": Study(
        "Priors, each under one guide: orbits, one recipe",
        {
            # Of its guides semi_amortized alone found clearly more log p(x), at several times the cost.
            "gaussian": (GAUSSIAN, "guide=mean_field"),
            "gamma": (GAMMA, "guide=gamma"),
            "orbit": ORBIT,
            "orbit, Laplace z": (*ORBIT, "latent=laplace"),
            "orbit, Student z": (*ORBIT, "latent=student"),
            "orbit, AR(1) z": (*ORBIT, "latent=autoregressive"),
        },
        PARTS,
        budgets=False,
        annealing=ANNEALING,
    ),
    "recipe": _learning_curves(
        "Recipes at the paper's MNIST size, 4,000 training sequences",
        {
            "published": ("lpartial, SGD, as published", (LPARTIAL, *SHORT)),
            "lpartial": ("lpartial, Adam and warm-up", (LPARTIAL, *SHORT, *OURS)),
            "lhalf": ("lhalf, Adam and warm-up", (LHALF, *SHORT, *OURS)),
            "plain_vae": ("plain VAE, Adam and warm-up", (PLAIN, *SHORT, *OURS)),
            "orbits_mean_field": (
                "orbits, the paper's guide",
                (*ORBITS, *SHORT, "prior=gaussian", "guide=mean_field", "fit.warmup_steps=1500", "fit.max_steps=28000"),
            ),
            "orbits": ("orbits, the orbit guide", (*ORBITS, *AS_LOUD, *SHORT, "fit.max_steps=8000")),
            "orbits_bfloat16": (
                "orbits, products in bfloat16",
                (*ORBITS, *AS_LOUD, *SHORT, "fit.max_steps=8000", "fit.matmul_precision=medium"),
            ),
        },
    ),
    "recipe_short": _learning_curves(
        "The quickstart's recipe at the paper's MNIST size, 4,000 training sequences",
        {
            "orbits": ("orbits, the orbit guide", (*NOW, *SHORT, *FAST)),
            "plain_vae": ("plain VAE", (*NOW, *SHORT, *FAST, *NO_TOPOGRAPHY)),
        },
    ),
    "recipe_long": _learning_curves(
        "The quickstart's recipe at the paper's MNIST size, 20,000 training sequences",
        {
            "orbits": ("orbits, the orbit guide", (*NOW, *LONG, "fit.warmup_steps=500")),
            "plain_vae": ("plain VAE", (*NOW, *LONG, "fit.warmup_steps=500", *NO_TOPOGRAPHY)),
        },
    ),
    "recipe_likelihood": _learning_curves(
        "Fitted for the likelihood alone, all frames shown: the paper's MNIST size, 20,000 training sequences",
        {
            # The KL to a χ² energy grows exponentially in what the guide says of its logarithm: one sequence in
            # thousands has a gradient of 10⁴ times the others', and without a clip a run of two ended in no number.
            "orbits": ("orbits, the orbit guide", (*NOW, *LONG, *WHOLE, "fit.gradient_clip=1000")),
            "plain_vae": ("plain VAE", (*NOW, *LONG, *WHOLE, *NO_TOPOGRAPHY)),
        },
        annealing={"sequences": 16, "num_chains": 4, "num_temperatures": 40},
    ),
    "recipe_hour": _learning_curves(
        "Recipes at the paper's MNIST size, 20,000 training sequences",
        {
            "lpartial": ("lpartial, Adam and warm-up", (LPARTIAL, *LONG, *OURS)),
            "lhalf": ("lhalf, Adam and warm-up", (LHALF, *LONG, *OURS)),
            "plain_vae": ("plain VAE, Adam and warm-up", (PLAIN, *LONG, *OURS)),
            "orbits": ("orbits, the orbit guide", (*ORBITS, *AS_LOUD, *LONG)),
        },
    ),
}
PAPER = ("table1", "table2", "fig1", "fig3", "fig4", "fig6", "fig22", "fig23")


def chosen(name: str) -> tuple[str, ...]:
    """Names of the studies that a word of the command line asks for: one, or with ``all`` those of the paper.

    Raises:
        ValueError: there is no such study.
    """
    if name != "all" and name not in STUDIES:
        raise ValueError(f"reproduce: there is no study called {name!r}; expected one of {', '.join(STUDIES)}, or all.")
    return PAPER if name == "all" else (name,)


def home(name: str, row: str) -> str:
    """The study in whose folder a row's runs are kept: a run that several of the paper's studies show is made once."""
    sharing = [other for other in PAPER if row in STUDIES[other].rows] if name in PAPER else []
    return sharing[0] if sharing else name
