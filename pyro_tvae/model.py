"""The generative program: z and an energy, composed into topographic Student-t variables, decoded frame by frame."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Integral, Real
from typing import Any
from weakref import WeakSet

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from .former_names import sites_of
from .latents import LatentPrior, NormalLatent
from .likelihoods import Bernoulli, Likelihood, of_seen, seen_pixels
from .memory import keep_freed_memory
from .naming import NamedModule
from .networks import MLP, Network, Shift
from .parts import ArgumentError, Part
from .priors import EnergyPrior, GaussianEnergy
from .programs import keywords
from .topographies.base import Topography, roll
from .topographies.published import CapsuleRoll, NoTopography

__all__ = ["TVAE"]

_owned: WeakSet[nn.Module] = WeakSet()  # learned parts that are in a model


class TVAE(Part, NamedModule):
    """The Topographic VAE as a Pyro program over sequences.

    Keller & Welling 2021, "Topographic VAEs learn Equivariant Capsules", https://arxiv.org/abs/2109.01394.

    ``z ~ Normal(0, 1)``, ``u ~ Normal(0, 1)``, ``v = W u²``, ``t = (z + μ) / sqrt(v + eps)``,
    ``x[l] ~ likelihood(decoder(t[l]))`` for frames l = 1…S. Frames are event dimensions: the sequence is the unit of
    independence, in the plate ``sequence``.

    Sites: ``z`` (S, C, D); the energy prior's own, ``u`` (S, C, D) in the paper's model; ``t`` (deterministic);
    ``x`` (S, channel, height, width). A subclass adds its own by :meth:`heads`, or by its own ``forward``;
    random weights (``PyroSample`` attributes of the decoder, or as μ) are sites of their full names, one draw for all
    sequences.

    Args:
        frame_shape: (channel, height, width) of a frame.
        n_frames: frames S in a sequence.
        n_capsules: capsules C.
        capsule_dim: positions D in a capsule.
        topography: which latents share energy; ``NoTopography()`` is the plain VAE.
        prior: of the energies.
        latent: the prior of z; standard Normal by default.
        likelihood: the distribution of the pixels.
        network: recipe of the decoder, and the default one of a guide's encoders.
        mu: where the learned scalar μ starts (30 for capsules, 10 for the 2-D torus in the paper).
        eps: added to the energies under the root.
        centered: let the decoder see t less the :meth:`center` that the model starts with, which stays as μ is learned;
            no effect without a topography. A decoder whose first layer has biases can say the same with and without,
            so that the model is the same; it is learned sooner, since with a large μ all t are large and positive, and
            the first layer sees little else.
        name: what its parameters are called in Pyro's store, for those who save and load that store; one of its own by
            default. See :class:`~pyro_tvae.naming.NamedModule`.

    Raises:
        ValueError: sizes below one, a topography or prior that does not fit the lattice, energies without a mean in a
            centred model, or a name that is taken.
        ArgumentError: a part that is none of its kind.

    Example:
        >>> model = TVAE(frame_shape=(1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6, topography=CapsuleRoll(3))
        >>> model(n_sequences=4).shape
        torch.Size([4, 6, 1, 8, 8])
    """

    bare_forward = True  # see programs.py
    _like: Tensor

    def __init__(
        self,
        frame_shape: Sequence[int] = (3, 28, 28),
        n_frames: int = 18,
        n_capsules: int = 18,
        capsule_dim: int = 18,
        topography: Topography | None = None,
        *,
        prior: EnergyPrior | None = None,
        latent: LatentPrior | None = None,
        likelihood: Likelihood | None = None,
        network: Network | None = None,
        mu: float = 30.0,
        eps: float = 1e-6,
        centered: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.frame_shape = tuple(frame_shape)
        self.n_frames, self.n_capsules, self.capsule_dim, self.eps = n_frames, n_capsules, capsule_dim, eps
        sizes = (*self.frame_shape, n_frames, n_capsules, capsule_dim)
        if len(sizes) != 6 or not all(isinstance(size, Integral) and size >= 1 for size in sizes):
            raise ValueError(
                f"TVAE: frame_shape={self.frame_shape}, n_frames={n_frames!r}, n_capsules={n_capsules!r}, "
                f"capsule_dim={capsule_dim!r}; expected (channel, height, width), and whole sizes of at least 1."
            )
        if not isinstance(centered, bool):
            raise ValueError(f"TVAE: centered is {centered!r}; expected True or False.")
        if not all(isinstance(number, Real) and math.isfinite(number) for number in (mu, eps)) or eps < 0:
            raise ValueError(f"TVAE: mu={mu!r}, eps={eps!r}; expected a finite mu and a finite eps >= 0.")
        for name, part, kind in (
            ("topography", topography, Topography),
            ("prior", prior, EnergyPrior),
            ("latent", latent, LatentPrior),
            ("likelihood", likelihood, Likelihood),
            ("network", network, Network),
        ):
            if part is not None and not isinstance(part, kind):
                raise ArgumentError(f"TVAE: {name} is {part!r}; expected a pyro_tvae.{kind.__name__}, or None.")
        self.register_buffer("_like", torch.zeros(()), persistent=False)
        self.topography = topography if topography is not None else CapsuleRoll()
        self.topography.check(n_frames, capsule_dim)
        self.likelihood = likelihood if likelihood is not None else Bernoulli()
        self.network = network if network is not None else MLP()
        self.decoder = self.network.decoder(self.n_latents, self.frame_shape)
        self.latent = latent if latent is not None else NormalLatent()
        self.latent.fit_to(n_frames, n_capsules, capsule_dim)
        self.prior: EnergyPrior | None = None
        self.centered = centered
        if isinstance(self.topography, NoTopography):
            if prior is not None:
                raise ValueError(
                    f"TVAE: NoTopography has no energies and takes no prior, but the prior is {type(prior).__name__}; "
                    "pass none (on the command line: experiment=plain_vae, which has none), or choose a topography."
                )
        else:
            self.prior = prior if prior is not None else GaussianEnergy()
            self.prior.fit_to(self.topography, n_frames, n_capsules, capsule_dim)
            self.mu = nn.Parameter(torch.tensor(float(mu)))
            if centered:
                self.decoder = nn.Sequential(Shift(-self.center()), self.decoder)
        self.latent.look_at(self)
        for part in (self.topography, self.prior, self.likelihood, self.latent):
            self._own(part)

    def _own(self, part: nn.Module | None) -> None:
        """Warn where a part that is learned is another model's too: what trains one changes the other."""
        if part is None or not any(parameter.requires_grad for parameter in part.parameters()):
            return
        if part in _owned:
            warnings.warn(
                f"TVAE: this {type(part).__name__} is part of another model too, and the weights that it learns are of "
                "both; make one for each model, where they are not to share them.",
                stacklevel=4,
            )
        _owned.add(part)

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device: the decoder's first parameter, where it has one."""
        return next(self.decoder.parameters(), self._like)

    @property
    def blank_sequence(self) -> Tensor:
        """One sequence of zeros, (1, S, channel, height, width), in the model's dtype and device."""
        return self.like.new_zeros(1, self.n_frames, *self.frame_shape)

    @property
    def n_latents(self) -> int:
        """Topographic variables per frame, C·D."""
        return self.n_capsules * self.capsule_dim

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(S, C, D)."""
        return (self.n_frames, self.n_capsules, self.capsule_dim)

    @property
    def covariates(self) -> frozenset[str]:
        """Names of what the program takes beside x and observed: keyword arguments of :meth:`heads` or ``forward``."""
        return keywords(type(self).heads) | keywords(type(self).forward)

    def heads(self, t: Tensor) -> None:
        """Further sites that depend on t, for subclasses: called inside the plate ``sequence``, before x is scored.

        What is sampled here counts in every objective and every weight, as in Pyro's own. A subclass gives it keyword
        arguments with a default; ``fit`` fills them from the batch's entries of these names, ``log_likelihood`` from
        its ``covariates``, and ``svi.step(x, label=y)`` does so as well.

        Args:
            t: (..., B, S, C, D), particles first where there are some.

        Example:
            >>> import pyro.distributions as dist
            >>> class Labeled(TVAE):
            ...     def __init__(self, *args, n_classes=10, **options):
            ...         super().__init__(*args, **options)
            ...         self.head = nn.Linear(self.n_latents, n_classes)
            ...
            ...     def heads(self, t, label=None):
            ...         if label is not None:
            ...             logits = self.head(t.flatten(-2).mean(-2))
            ...             pyro.sample("label", dist.Categorical(logits=logits), obs=label)
            >>> model = Labeled((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6)
            >>> sorted(model.covariates)
            ['label', 'measured']
        """

    def forward(
        self,
        x: Tensor | None = None,
        observed: Tensor | None = None,
        *,
        n_sequences: int | None = None,
        subsample: Tensor | None = None,
        measured: Tensor | None = None,
        **covariates: Any,
    ) -> Tensor:
        """Run the program: condition on x (B, S, channel, height, width), or sample ``n_sequences`` from the prior.

        Args:
            x: the sequences, or None to sample them.
            observed: (S,) or (B, S) booleans: only these frames of x are scored, and what x holds in the others has no
                influence. None means all.
            n_sequences: how many to sample where x is None; 1 by default.
            subsample: (B, n) numbers of the frames that are decoded and scored, each S / n times, as Pyro's plates
                scale a subsample: where they were drawn uniformly, log p(x | t) is right in expectation, for a part of
                the price.
            measured: (B, S, channel or 1, height, width) booleans: only these pixels of x are scored, likewise. A
                guide of this package is shown zeros in place of the others; one that is a function of your own, in an
                ``SVI`` of Pyro's, has to see to that itself.
            covariates: handed to :meth:`heads`.

        Returns:
            The value of site ``x``: x itself, blank in frames that were not seen, or a sample (B, S, channel, height,
            width); of the subsample alone, where there is one.
        """
        keep_freed_memory()  # by fit or in a loop of one's own
        if x is not None:
            self.check(x)
            n_sequences = x.shape[-5]
        n_sequences = 1 if n_sequences is None else n_sequences
        if n_sequences < 1:
            raise ValueError(f"TVAE: there are {n_sequences} sequences; expected at least 1.")
        unknown = sorted({*covariates} - self.covariates)
        if unknown:
            raise TypeError(
                f"{type(self).__name__} takes no {unknown[0]!r} beside x and observed; expected "
                f"{' or '.join(sorted(self.covariates)) or 'nothing else'}: add it to heads as a keyword argument."
            )
        self._draw_weights()
        distributions = self.prior_distributions()
        with pyro.plate("sequence", n_sequences, dim=-1):
            values = {site: pyro.sample(site, distribution) for site, distribution in distributions.items()}
            t = pyro.deterministic("t", self.compose(values), event_dim=3)
            self.heads(t, **covariates)
            mask = None if observed is None else frame_mask(observed, n_sequences, self.n_frames).to(t.device)
            if subsample is not None:
                t = _frames_of(t, subsample, -3)
                x = None if x is None else _frames_of(x, subsample, -4)
                mask = None if mask is None else _frames_of(mask.expand(n_sequences, -1), subsample, -1)
                measured = None if measured is None else _frames_of(measured, subsample, -4)
            frames, seen = of_seen(self.decode(t), mask, measured), seen_pixels(mask, measured)
            if x is not None and seen is not None:  # a masked log-probability has a NaN gradient where that is NaN
                x = torch.where(seen, x, self.likelihood.blank)
            with nullcontext() if subsample is None else pyro.poutine.scale(scale=self.n_frames / subsample.shape[-1]):
                return pyro.sample("x", frames.to_event(1), obs=x)

    def prior_distributions(self) -> dict[str, TorchDistribution]:
        """Prior of every latent site for one sequence: no batch dimensions, event shapes as in the class's text."""
        like = self.like
        energies = {site: prior.distribution(like) for site, prior in self.energies.items()}
        return {"z": self.latent.distribution(like)} | energies

    @property
    def energies(self) -> dict[str, EnergyPrior]:
        """Site -> prior of what carries the energies: empty for a plain VAE, whose ``prior`` is None."""
        return {} if self.prior is None else {self.prior.site: self.prior}

    def energy(self, u: Tensor) -> Tensor:
        """Local energies V (..., S, C, D) from a value of the energy prior's site."""
        if self.prior is None:
            raise ValueError("a TVAE with NoTopography has no energies: t = z.")
        return self.prior.energy(u, self.topography)

    def compose(self, values: Mapping[str, Tensor], u: Tensor | None = None) -> Tensor:
        """Topographic variables ``t = (z + μ) / sqrt(V + eps)``, (..., S, C, D); t = z without a topography.

        Args:
            values: site -> value: z, (..., S, C, D), and that of the energies, (..., S, C, D) in the paper's model;
                other sites are left alone.
            u: as ``compose(z, u)``, the former way, which goes with the next version.

        Raises:
            ValueError: a site has no value; or a random μ has none here, see :meth:`held`.
        """
        if isinstance(values, Tensor):
            values = sites_of(self, values, u)
        sites = ["z", *self.energies]
        for site in sites:
            if site not in values:
                raise ValueError(
                    f"compose needs a value of site {site!r}; expected a mapping of {' and '.join(sites)}."
                )
        t = values["z"]
        if sites[1:]:
            self._check_held("compose", of_mu=True)
        for site in sites[1:]:
            t = (t + self._mu) * (self.energy(values[site]) + self.eps).rsqrt()
        return t

    @property
    def _mu(self) -> Tensor:
        """μ beside t: a random one has one value per particle, (K, 1)."""
        return self.mu if self.mu.dim() == 0 else self.mu[..., None, None, None]

    # ---- random weights

    def weight_sites(self) -> dict[str, tuple[PyroModule, str]]:
        """Site name of every random weight (``PyroSample`` attribute) -> (module, attribute), of any part."""
        return {
            f"{self._pyro_name}.{path}.{name}" if path else f"{self._pyro_name}.{name}": (part, name)
            for path, part in self.named_modules()
            if isinstance(part, PyroModule)
            for name in part._pyro_samples
        }

    def _draw_weights(self) -> None:
        """Sample random weights before the plate, so that they are one draw for all sequences and not one for each."""
        if not self._pyro_context.active:
            return
        for site, (part, name) in self.weight_sites().items():
            # Particles are told to the decoder, one by one, and to μ; how other parts would take them is not known.
            batched = _particles(part, name, getattr(part, name)) is not None
            if batched and name != "mu" and not site.startswith(f"{self._pyro_name}.decoder."):
                raise ValueError(
                    f"{site} is random (PyroSample) and has a value for each of several particles; expected random "
                    "weights of the decoder or a random mu there: take one particle at a time, or make it a parameter."
                )

    @contextmanager
    def held(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Random weights at given values for a block of code, whatever else is in the mapping.

        Args:
            values: site -> *weight, or (1, *weight), or (K, 1, *weight) for K particles.

        Raises:
            ValueError: one of them is missing.
        """
        sites = self.weight_sites()
        missing = sorted({*sites} - {*values})
        if missing:
            raise ValueError(
                f"the model has a random weight {missing[0]!r} that the guide lacks; give the guide that site."
            )
        with self._pyro_context if sites else nullcontext():
            for site, (part, name) in sites.items():
                value = values[site]
                self._pyro_context.set(site, value.squeeze(0) if value.dim() == _weight_dim(part, name) + 1 else value)
            yield

    def _check_held(self, owner: str, *, of_mu: bool) -> None:
        """Raise ValueError where Pyro would draw a random weight from its prior, since nothing holds a value of it."""
        if self._pyro_context.active:
            return
        random = [site for site, (_, name) in self.weight_sites().items() if (name == "mu") == of_mu]
        if random:
            raise ValueError(
                f"{owner}: the model has a random weight {random[0]!r}, and no value of it holds here; {owner} within "
                "'with model.held({site: value, …}):', with a draw of the guide's."
            )

    def _decoder_outputs(self, t: Tensor) -> Tensor:
        """What the decoder says of t (..., C·D), under one set of random weights for each particle."""
        sites = self.weight_sites() if self._pyro_context.active else {}
        flat = {
            site: values
            for site, (part, name) in sites.items()
            if (values := _particles(part, name, getattr(part, name))) is not None and name != "mu"
        }
        if not flat:
            outputs: Tensor = self.decoder(t)
            return outputs
        for part in self.decoder.modules():  # parameters enter Pyro's store when they are read, which vmap forbids
            if isinstance(part, PyroModule):
                for name in (*part._parameters, *part._pyro_params):
                    getattr(part, name.removesuffix("_unconstrained"))
        cache = self._pyro_context.cache
        whole = dict(cache)

        def one(t: Tensor, weights: dict[str, Tensor]) -> Tensor:
            cache.update(weights)
            outputs: Tensor = self.decoder(t)
            return outputs

        try:
            return torch.vmap(one, randomness="different")(t, flat)
        finally:
            cache.update(whole)

    @torch.no_grad()
    def expected(self) -> Tensor:
        """``μ / sqrt(E[V] + eps)``, (S, C, D): t where z is 0 and every energy at its prior mean; 0 for a plain VAE.

        Raises:
            ValueError: by the prior's ``distribution`` and ``point`` that mean is no positive number.
        """
        like = self.like
        if self.prior is None:
            return like.new_zeros(self.latent_shape)
        try:
            energy = self.energy(self.prior.point(self.prior.distribution(like)))
        except NotImplementedError:  # a distribution without a mean
            energy = like.new_tensor(math.nan)
        if not (energy.isfinite() & (energy > 0)).all():
            who, other = ("an open boundary", "boundary='truncate' (on the command line: topography.boundary=truncate)")
            if self.centered:
                who, other = ("a centered model", "centered=False (on the command line: model.centered=false)")
            raise ValueError(
                f"TVAE: {who} needs the mean of its energies, a positive number, and 'distribution' and 'point' of "
                f"{type(self.prior).__name__} give none; give the distribution a mean or override 'point', or pass "
                f"{other}."
            )
        return self._mu * (energy + self.eps).rsqrt()

    def center(self) -> Tensor:
        """Mean over the lattice of :meth:`expected`; its errors."""
        return self.expected().mean()

    def rolled(self, t: Tensor, shift: int | Tensor) -> Tensor:
        """Roll t of a frame as the motion goes on: position p moves to p + shift, (..., C, D) -> broadcast with shift.

        Where the topography's boundary is open, what enters a capsule was never in sight: it stands at its prior
        expectation, z = 0 and the energy at its mean, which is what the decoder met at places of which nothing was
        known. Zeros would lie far outside of all that it has met, and what left at the other end does not come back.

        Args:
            t: (..., C, D).
            shift: as :func:`~pyro_tvae.roll` takes it.
        """
        entering = self.expected()[..., self.n_frames // 2, :, :] if self.topography.boundary == "open" else None
        return roll(t, shift, entering)

    def decode(self, t: Tensor) -> TorchDistribution:
        """The distribution of frames given t (..., C, D): batch shape (...), event shape (channel, height, width).

        Raises:
            ValueError: t has another shape; or random weights have no value here, see :meth:`held`.
        """
        if t.shape[-2:] != self.latent_shape[1:]:
            raise ValueError(
                f"decode: t has shape {tuple(t.shape)}; expected (..., {self.n_capsules} capsules, "
                f"{self.capsule_dim} positions)."
            )
        self._check_held("decode", of_mu=False)
        return self.likelihood(self._decoder_outputs(t.flatten(-2))).to_event(3)

    def check(self, x: Tensor) -> None:
        """Raise ValueError or TypeError where x is not a batch of sequences for this model."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x is of type {type(x).__name__}; expected a tensor of sequences.")
        if tuple(x.shape[-4:]) != (self.n_frames, *self.frame_shape) or x.dim() < 5:
            channel, height, width = self.frame_shape
            remedy = "add the missing dimension" if x.dim() < 5 else "give such sequences"
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this model expects (sequence, frame, channel, height, width) = (any, "
                f"{self.n_frames}, {channel}, {height}, {width}): {remedy}, or build the model for these sizes."
            )
        if 0 in x.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected at least one sequence.")
        if not x.is_floating_point():
            raise TypeError(f"x has dtype {x.dtype}; expected floating point pixels in [0, 1]: divide bytes by 255.")
        dtype = self.like.dtype
        if x.dtype != dtype:
            raise TypeError(
                f"x has dtype {x.dtype}, the model {dtype}; convert x with .to({dtype}), or model and guide with "
                f".to({x.dtype})."
            )


def _frames_of(value: Tensor, numbers: Tensor, dim: int) -> Tensor:
    """The frames of such numbers, (B, n), of a value with frames at ``dim`` and sequences before them."""
    # Not by brackets, which ask the device whether the numbers are a mask.
    index = numbers.reshape(*numbers.shape, *(1,) * (-dim - 1))
    return value.gather(dim, index.expand(*value.shape[:dim], numbers.shape[-1], *value.shape[value.dim() + dim + 1 :]))


def tvae_of(model: Any) -> TVAE:
    """The TVAE inside handlers such as ``poutine.scale(model, …)``.

    Raises:
        TypeError: there is none.
    """
    inner = inspect.unwrap(model) if callable(model) else model
    if not isinstance(inner, TVAE):
        raise TypeError(f"the model is of type {type(model).__name__}; expected a TVAE, or a Pyro handler around one.")
    return inner


def _weight_dim(part: PyroModule, name: str) -> int:
    """Dimensions of one value of a random weight."""
    prior: Any = part._pyro_samples[name]
    distribution = prior if hasattr(prior, "sample") else prior(part)
    return len(distribution.shape()) if hasattr(distribution, "sample") else distribution.dim()


def _particles(part: PyroModule, name: str, value: Tensor) -> Tensor | None:
    """A random weight drawn in the plate of particles, (K, 1, *weight), as (K, *weight); None where there is none."""
    return value.squeeze(1) if value.dim() == _weight_dim(part, name) + 2 else None


def check_finite(x: Tensor, observed: Tensor | None) -> None:
    """Raise ValueError where a frame that is seen holds nan or infinity."""
    pixels = tuple(range(2, x.dim()))
    sound = x.amin(pixels).isfinite() & x.amax(pixels).isfinite()  # isfinite of all of x would need room for a copy
    if observed is not None:
        sound = sound | ~frame_mask(observed, *x.shape[:2]).to(x.device)
    if not bool(sound.all()):
        sequence, frame = (~sound).nonzero()[0].tolist()
        raise ValueError(
            f"frame {frame} of sequence {sequence} of x holds nan or infinity; expected finite pixels: mend them, or "
            "say by observed that the frame was not seen; pixels that were not measured may hold any other number."
        )


def mask_of(observed: Tensor | None, x: Tensor, *, each: bool = False) -> Tensor | None:
    """``observed`` as booleans (1, or B as for ``each``, S) beside x (B, S, channel, height, width); None means all."""
    if observed is None:
        return None
    mask = frame_mask(observed, *x.shape[:2]).to(x.device)
    return mask.expand(len(x), -1) if each else mask


def frame_mask(observed: Tensor, n_sequences: int, n_frames: int) -> Tensor:
    """``observed`` as booleans (1 or B, S); raises ValueError where it is anything else."""
    if not isinstance(observed, Tensor):
        raise TypeError(f"observed is of type {type(observed).__name__}; expected a tensor of booleans.")
    if observed.dtype != torch.bool or tuple(observed.shape) not in ((n_frames,), (n_sequences, n_frames)):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)} and dtype {observed.dtype}; expected booleans of shape "
            f"({n_frames},) or ({n_sequences}, {n_frames}): true where a frame was seen."
        )
    return observed.reshape(-1, n_frames)
