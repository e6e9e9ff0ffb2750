"""Former names in code: called or overridden, they work for one version and say what they are called now."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

import pyro_tvae
from pyro_tvae import TVAE, BinarizedBernoulli, CapsuleRoll, GammaEnergy, LatentPrior, NormalLatent, NoTopography
from pyro_tvae.former_names import METHODS

FRAME, S, C, D = (1, 2, 3), 4, 2, 4
Z, U = torch.randn(2, 5, S, C, D)


def small(kind: type[TVAE] = TVAE, **options: Any) -> TVAE:
    torch.manual_seed(0)
    return kind(FRAME, S, C, D, **options)


def former(call: Callable[[], Any], *words: str) -> Any:
    """What a call gives that warns as often as there are words, with these, of a line in this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = call()
    messages = [(str(one.message), one.category, one.filename) for one in caught]
    assert len(messages) == len(words), messages
    for (message, category, filename), word in zip(messages, words, strict=True):
        assert word in message
        assert "next version" in message
        assert (category, filename) == (DeprecationWarning, __file__)
    return value


def today(call: Callable[[], Any]) -> Any:
    """What a call gives that does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call()


def test_every_former_method_can_be_called() -> None:
    model, tried = small(), set()
    for owner, old, new, arguments in (
        (model.latent, "law", "distribution", (Z,)),
        (model.prior, "law", "distribution", (Z,)),
        (model, "laws", "prior_distributions", ()),
        (model, "centre", "center", ()),
        (model.topography, "neighbourhood", "neighborhood", (S, D)),
        (NoTopography(), "neighbourhood", "neighborhood", (S, D)),
        (BinarizedBernoulli(), "binarise", "binarize", (torch.rand(S, *FRAME),)),
    ):
        value = former(partial(getattr(owner, old), *arguments), repr(new))
        assert str(value) == str(today(partial(getattr(owner, new), *arguments)))
        tried.add(old)
    assert tried == {old for table in METHODS.values() for old in table}


class Plain(NormalLatent):
    """Of today."""

    def distribution(self, like: Tensor) -> TorchDistribution:
        return super().distribution(like)


class Foreign:
    """No part, so that the class below it is the first to be looked at."""

    def law(self, like: Tensor) -> TorchDistribution:
        inner: TorchDistribution = super().law(like)  # type: ignore[misc]
        return dist.Laplace(like.new_zeros(()), inner.variance.mean()).expand([S, C, D]).to_event(3)


@pytest.mark.parametrize("base", [NormalLatent, Plain])
def test_an_override_by_the_former_name_is_what_the_model_runs(base: type[LatentPrior]) -> None:
    def define() -> type[LatentPrior]:
        class Wide(base):  # type: ignore[valid-type, misc]
            def law(self, like: Tensor) -> TorchDistribution:
                inner = super().law(like)  # once a call to itself, without end
                return dist.Normal(inner.mean, 3 * inner.variance.sqrt()).to_event(3)

        return Wide

    wide = former(define, "'law' that it overrides is now 'distribution'")
    deep = former(lambda: type("Deep", (wide,), {"law": lambda self, like: wide.distribution(self, like)}), "'law'")
    for kind in (wide, deep):
        model = small(latent=kind())
        q = former(lambda: model.prior_distributions()["z"], "'distribution'")  # noqa: B023 - super().law's
        assert torch.equal(q.variance, torch.full((S, C, D), 9.0))
        assert torch.equal(former(lambda: model.latent.law(Z), "law", "law").variance, q.variance)  # noqa: B023
    again = type("Again", (wide,), {"distribution": lambda self, like: NormalLatent.distribution(self, like)})
    assert torch.equal(former(lambda: small(latent=again()).latent.law(Z), "law").variance, torch.ones(S, C, D))


def test_an_override_from_a_class_of_others_counts() -> None:
    mixed = former(lambda: type("Mixed", (Foreign, NormalLatent), {}), "'law' that it overrides")
    assert isinstance(former(lambda: small(latent=mixed()).prior_distributions()["z"], "law").base_dist, dist.Laplace)


def test_energies_topographies_and_models_override_them_too() -> None:
    class Today(GammaEnergy):
        pass

    def energy() -> Any:
        class Energy(Today):
            def law(self, like: Tensor) -> TorchDistribution:
                return dist.Gamma(like.new_tensor(3.0), like.new_tensor(0.5)).expand(self.shape).to_event(3)

        return Energy

    def topography() -> Any:
        class Twice(CapsuleRoll):
            def neighbourhood(self, n_frames: int, n_positions: int) -> Tensor:
                return 2 * super().neighbourhood(n_frames, n_positions)

        return Twice

    def tvae() -> Any:
        class Model(TVAE):
            def laws(self) -> dict[str, TorchDistribution]:
                return {"z": super().laws()["z"], "u": dist.Normal(5.0, 0.1).expand([S, C, D]).to_event(3)}

        return Model

    prior = former(energy, "'law'")()
    assert small(prior=prior).prior_distributions()["e"].mean.unique().tolist() == [6.0]
    twice = former(topography, "'neighbourhood'")(3)
    assert torch.equal(former(lambda: twice.neighborhood(S, D), "neighbo"), 2 * CapsuleRoll(3).neighborhood(S, D))
    model = small(former(tvae, "'laws'"))
    draws = former(lambda: model.prior_distributions(), "'prior_distributions'")
    assert float(draws["u"].mean.mean()) == 5.0


def test_compose_of_z_and_u() -> None:
    model = small()
    t = today(lambda: model.compose({"z": Z, "u": U, "w": U[0]}))
    assert torch.equal(former(lambda: model.compose(Z, U), "compose(values)"), t)
    assert torch.equal(former(lambda: model.compose(Z, u=U), "compose(values)"), t)
    plain = small(topography=NoTopography())
    assert torch.equal(former(lambda: plain.compose(Z), "compose(values)"), Z)
    with (
        pytest.raises(ValueError, match="needs a value of site 'u'; expected a mapping of z and u"),
        pytest.deprecated_call(),
    ):
        model.compose(Z)


@pytest.mark.parametrize("topography", [CapsuleRoll(3), NoTopography()], ids=["roll", "none"])
def test_an_override_of_the_former_compose(topography: pyro_tvae.Topography) -> None:
    def define() -> Any:
        class Doubled(TVAE):
            def compose(self, z: Tensor, u: Tensor | None = None) -> Tensor:
                return 2 * super().compose(z, u)

        return Doubled

    model = small(former(define, "compose(values)"), topography=topography)
    expected = 2 * small(topography=topography).compose({"z": Z, "u": U})
    assert torch.equal(former(lambda: model.compose({"z": Z, "u": U}), "compose(values)"), expected)
    assert torch.equal(former(lambda: model.compose(Z, U), "compose(values)"), expected)

    def derived() -> Any:
        class Tripled(type(model)):  # type: ignore[misc]
            def compose(self, values: Any) -> Tensor:
                return 3 * super().compose(values)

        return Tripled

    of_sites = small(today(derived), topography=topography)
    assert torch.equal(former(lambda: of_sites.compose({"z": Z, "u": U}), "compose(values)"), 3 * expected)


class Options(TVAE):
    """Hands on what it is given."""

    def __init__(self, *args: Any, n: int = 1, **options: Any) -> None:
        super().__init__(*args, **options)
        self.n = n


class Own(TVAE):
    """Has an argument of the former name for itself."""

    def __init__(self, *args: Any, centred: str = "mine", **options: Any) -> None:
        super().__init__(*args, **options)
        self.own = centred


def test_a_former_argument() -> None:
    for kind in (TVAE, Options):
        model = former(partial(small, kind, centred=True), "")
        assert sorted(model.state_dict()) == sorted(small(kind, centered=True).state_dict())
        assert model.arguments() == model.arguments() | {"options": {"centered": True}} or model.arguments()["centered"]
    assert today(partial(small, Own)).own == "mine"
    assert today(partial(small, Own, centred="yours")).own == "yours"
    with pytest.raises(TypeError, match="centred"):
        pyro_tvae.MeanFieldGuide(small(), centred=True)  # type: ignore[call-arg]


def test_names_of_the_package() -> None:
    assert former(lambda: pyro_tvae.BinarisedBernoulli, "BinarizedBernoulli") is BinarizedBernoulli  # type: ignore[attr-defined]
    assert pyro_tvae.__version__.count(".") == 2
    q: pyro_tvae.Posterior = pyro_tvae.MeanFieldGuide(small()).posterior(torch.rand(2, S, *FRAME))
    assert [*q] == ["z", "u"]
