"""Evaluation: numbers against independent ones, and verdicts that can tell a collapsed model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_tvae
from pyro_tvae import (
    MLP,
    TVAE,
    BinarizedBernoulli,
    CapsuleRoll,
    Guide,
    MeanFieldGuide,
    NoTopography,
    OrbitEnergy,
    OrbitGuide,
    default_guide,
)
from pyro_tvae.experiments.datasets import SequenceDataModule, Splits, Transformations, digits
from pyro_tvae.experiments.datasets.splits import Frames
from pyro_tvae.experiments.evaluation import scoring
from pyro_tvae.experiments.evaluation.evaluate import evaluate, measure, remarks
from pyro_tvae.experiments.evaluation.measures import BLIND, CONTROLLED, HEADINGS, MEASURES, flat, score
from pyro_tvae.experiments.evaluation.record import EvaluationRecord, rows
from pyro_tvae.experiments.reports.report import write_report
from pyro_tvae.experiments.reports.tables import print_evaluation
from pyro_tvae.experiments.runs.files import finite
from pyro_tvae.experiments.runs.run import Run
from pyro_tvae.experiments.studies.cells import measured
from pyro_tvae.inference import ELBO, equivariance_error, fit, forward_roll, log_likelihood
from pyro_tvae.verbs import encode


@pytest.fixture(scope="module")
def data() -> SequenceDataModule:
    moves = Transformations(rotation=range(0, 360, 60), moving=["rotation"])
    return SequenceDataModule(digits(size=8), moves, n_frames=6, n_train=40, n_test=30, eval_batch_size=8)


def make(prior: bool = True) -> tuple[TVAE, OrbitGuide]:
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 6, 2, 6, CapsuleRoll(6, 0), prior=OrbitEnergy())
    return model, OrbitGuide(model)


def test_measures_agree_with_the_estimators_one_by_one(data: SequenceDataModule) -> None:
    model, guide = make()
    x = torch.cat([batch["x"] for batch in data.batches("test")])
    scores = flat(measure(model, guide, data, num_particles=200, progress=False))
    estimate = log_likelihood(model, guide, x, num_particles=200, seed=1)
    n = model.n_frames
    with torch.no_grad():
        terms = ELBO(model, guide, num_particles=200)(x)
    assert scores["kl"] == pytest.approx(float(terms.kl.mean()) / n, rel=1e-5)
    # Both are means of 200 draws for each of 30 sequences; they differ by chance alone (5 standard errors).
    spread = float(estimate.standard_error.mean()) / n
    assert scores["iwae"] == pytest.approx(estimate.per_frame, abs=5 * spread + 1e-6)
    assert scores["elbo"] == pytest.approx(float(terms.elbo.mean()) / n, rel=0.02)
    assert scores["reconstruction"] - scores["kl"] == pytest.approx(scores["elbo"])
    assert scores["e_eq"] == pytest.approx(equivariance_error(encode(model, guide, x)), rel=1e-6)


def test_explained_is_zero_for_the_mean_frame_and_one_for_a_perfect_code(data: SequenceDataModule) -> None:
    """A decoder that ignores t and says the mean frame, with a guide that says the prior, explains nothing."""
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 6, 2, 6, NoTopography())
    guide = MeanFieldGuide(model, initial_log_variance=0.0)
    mean = data.mean_frame().clamp(1e-6, 1 - 1e-6)
    with torch.no_grad():
        for module in (model.decoder, guide.z_encoder):
            last = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1]
            last.weight.zero_()
            last.bias.zero_()
        last = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Linear)][-1]
        last.bias.copy_(torch.logit(mean).flatten())
    result = evaluate(model, guide, data, num_particles=3, progress=False)
    assert result.record["measures"]["trained"]["explained"] == pytest.approx(0, abs=1e-4)
    assert result.record["collapsed"]
    assert result.record["verdict"][0].startswith("Collapsed")
    x = torch.cat([batch["x"] for batch in data.batches("test")])
    entropy = torch.special.entr(x) + torch.special.entr(1 - x)
    best = model.likelihood.at_mean(x).log_prob(x)
    assert float(-best.sum()) == pytest.approx(float(entropy.sum()), rel=1e-3)


def test_the_table_has_a_value_for_every_model_and_the_factor_that_moves(data: SequenceDataModule) -> None:
    trained, untrained = make(), make()
    torch.manual_seed(1)
    plain = TVAE((1, 8, 8), 6, 2, 6, NoTopography())
    rivals = {"untrained": untrained, "plain_vae": (plain, MeanFieldGuide(plain))}
    record = evaluate(*trained, data, num_particles=5, progress=False, **rivals).record
    rows = {row["key"]: row for row in record["rows"]}
    assert "roll/rotation" in rows
    assert rows["elbo"]["trained"] == rows["elbo"]["untrained"]
    assert math.isfinite(rows["iwae"]["plain_vae"])
    assert rows["e_eq"]["trained"] < 1e-2 * rows["e_eq"]["plain_vae"]
    assert {"plain VAE, rolled", "plain VAE, held"} <= set(record["forward_roll"]["log_likelihood"])
    # log p(unseen frames | seen frames) stands beside the forecasts.
    x = torch.cat([batch["x"] for batch in data.batches("test")])
    expected = forward_roll(*trained, x, num_particles=5, seed=2).conditional
    conditional = record["forward_roll"]["conditional"]
    assert expected is not None
    assert conditional is not None
    # Means of 30 differences of two bounds of 5 weights, from other draws: 5 standard errors, 1 in 1.7 million.
    chance = float(log_likelihood(*trained, x, num_particles=5).standard_error.mean()) / 30**0.5
    assert conditional["mean"] == pytest.approx(expected.mean, abs=5 * 2 * chance / 3)
    assert 0.5 < conditional["standard_error"] / expected.standard_error < 2
    told = f"is about {conditional['mean']:.1f} ± {conditional['standard_error']:.1f} nats"
    assert any(told in sentence for sentence in record["verdict"])


# What every part of the scoring costs where it fails: measures, "forward_roll", "verdict" or "remarks".
COSTS = {
    "scoring.log_weights": {"elbo", "iwae", "iwae_error", "iwae_sequences", "ess"},
    "scoring.log_weights_by_frame": {"elbo", "iwae", "iwae_error", "iwae_sequences", "ess", "frame_unnormalised"},
    "scoring.point_estimate": {"e_eq", "roll", "roll_exact", "cap_corr", "commutation", "probe", "pose"},
    "scoring.moments": {"active"},
    "scoring.divergence": {"kl"},
    "scoring.ends_of_explained": {"explained"},
    "scoring.equivariance_error": {"e_eq"},
    "scoring.roll_correlation": {"roll", "roll_exact"},
    "scoring.capsule_correlation": {"cap_corr"},
    "scoring.commutation": {"commutation"},
    "scoring.active_latents": {"active"},
    "scoring.probe": {"probe"},
    "scoring.pose_probe": {"pose"},
    "evaluate.forward_roll": {"forward_roll"},
    "evaluate.verdict": {"verdict"},
    "evaluate.remarks": {"remarks"},
}


def published() -> tuple[TVAE, Guide]:
    """The paper's energies and guide, for which every measure has a number."""
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 6, 2, 6)
    return model, default_guide(model)


@pytest.fixture(scope="module")
def few() -> SequenceDataModule:
    moves = Transformations(rotation=range(0, 360, 60), moving=["rotation"])
    return SequenceDataModule(digits(size=8), moves, n_frames=6, n_train=10, n_validation=10, n_test=10)


@pytest.fixture(scope="module")
def sound(few: SequenceDataModule) -> EvaluationRecord:
    return evaluate(*published(), few, num_particles=12, progress=False).record


@pytest.mark.parametrize("part", COSTS)
def test_what_fails_costs_its_own_measures(
    part: str, few: SequenceDataModule, sound: EvaluationRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("made to fail")

    monkeypatch.setattr(f"pyro_tvae.experiments.evaluation.{part}", broken)
    record = evaluate(*published(), few, num_particles=12, progress=False).record
    assert record["failed"] == dict.fromkeys(record["failed"], "RuntimeError: made to fail")
    derived = {"explained", "reconstruction"} if "elbo" in COSTS[part] else {"reconstruction"} & COSTS[part]
    assert COSTS[part] <= {*record["failed"]} <= COSTS[part] | derived
    lost = COSTS[part] | derived | ({"reconstruction"} if "kl" in COSTS[part] else set())
    before, now = sound["measures"]["trained"], record["measures"]["trained"]
    # Draws that failed leave the generator behind, so that what is drawn later differs by chance.
    kept = {name for name in before if name not in lost and "log_weights" not in part}
    assert {name: flat({name: now[name]}) for name in kept} == {name: flat({name: before[name]}) for name in kept}
    assert all(not now[name] or math.isnan(score(now, name)) for name in lost & {*before})
    # Whoever reads the record lives with that.
    (tmp_path / "evaluation.json").write_text(json.dumps(finite(dict(record))))
    print_evaluation(record)
    page = write_report(tmp_path, record, {}, "").read_text()
    assert all(f"{name} is left out: RuntimeError: made to fail" in page for name in COSTS[part])
    cell = measured(Run(tmp_path))
    assert {*cell.values} >= {"collapsed"}


def test_a_rival_that_fails_costs_its_column(
    few: SequenceDataModule, monkeypatch: pytest.MonkeyPatch, sound: EvaluationRecord
) -> None:
    rival, other = published()
    rival.decoder = torch.nn.Identity()  # whose frames have another shape
    record = evaluate(*published(), few, untrained=(rival, other), num_particles=12, progress=False).record
    assert record["measures"]["trained"] == sound["measures"]["trained"]
    assert any(name.endswith("(untrained)") for name in record["failed"])
    assert {row["key"] for row in record["rows"]} == {row["key"] for row in sound["rows"]}


@pytest.mark.parametrize("gray", [0.0, 0.3, 1.0])
def test_a_constant_film_leaves_nothing_to_explain(gray: float) -> None:
    """Its mean frame is each of its frames: the share is that of nothing, and no number."""
    films = Splits(*(Frames(torch.full((n, 6, 1, 8, 8), gray), torch.zeros(n).long()) for n in (20, 10, 10)))
    film = SequenceDataModule(films, n_frames=6, eval_batch_size=8)
    record = evaluate(*make(), film, untrained=make(), num_particles=2, progress=False).record
    assert math.isnan(score(record["measures"]["trained"], "explained"))
    assert record["collapsed"] is None
    assert "nothing to explain" in record["failed"]["explained"]
    assert "explained (untrained)" not in record["failed"]  # which the data are to blame for
    assert record["verdict"][0].startswith("Whether the model has collapsed is not known")
    assert math.isfinite(score(record["measures"]["trained"], "iwae"))
    print_evaluation(record)


def test_the_same_seed_evaluates_the_same(data: SequenceDataModule) -> None:
    one, two = (measure(*make(), data, num_particles=4, seed=7, progress=False) for _ in range(2))
    other = measure(*make(), data, num_particles=4, seed=8, progress=False)
    assert [one[key] for key in ("iwae", "elbo", "kl", "e_eq")] == [two[key] for key in ("iwae", "elbo", "kl", "e_eq")]
    assert one["iwae"] != other["iwae"]


def test_content_measures_know_a_code_from_none(data: SequenceDataModule) -> None:
    """A guide that copies pixels into z, and a topography that shares nothing: class and pose can be read from t."""
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 6, 2, 32, NoTopography())
    guide = MeanFieldGuide(model, network=Copy())
    scores = flat(measure(model, guide, data, num_particles=3, progress=False))
    assert scores["active/z"] > 30
    assert scores["probe"] > 0.3  # ten classes
    assert scores["pose/rotation"] > 0
    assert 0.5 < scores["commutation/rotation"] < 2  # it does not roll
    assert scores["frame_unnormalised"] > scores["elbo"]
    orbits = measure(*make(), data, num_particles=3, progress=False)
    assert math.isnan(score(orbits, "frame_unnormalised"))  # orbit energies belong to no frame


class Copy(MLP):
    """An encoder whose means are the pixels themselves."""

    def encoder(self, frame_shape: Sequence[int], n_latents: int, n_outputs: int) -> torch.nn.Module:
        layer = torch.nn.Linear(64, 128, bias=True)
        with torch.no_grad():
            layer.weight.copy_(torch.cat([torch.eye(64), torch.zeros(64, 64)]))
            layer.bias.zero_()
        return torch.nn.Sequential(torch.nn.Flatten(-3), layer)


def test_moving_on_is_one_value_further(data: SequenceDataModule) -> None:
    dataset = data.datasets["test"]
    batch = next(data.batches("test"))
    further = dataset.moved_on(dict(batch))
    assert further is not None
    torch.testing.assert_close(further["x"][:, :-1], batch["x"][:, 1:])
    torch.testing.assert_close(further["x"][:, -1], batch["x"][:, 0])  # the circle closes


def test_only_grey_values_are_remarked_on() -> None:
    sizes = {"frame_shape": (1, 4, 4), "n_frames": 2, "n_capsules": 2, "capsule_dim": 2}
    bits = (torch.rand(2, 2, 1, 4, 4) > 0.5).float()
    bernoulli, binarized = TVAE(**sizes), TVAE(**sizes, likelihood=BinarizedBernoulli())
    assert remarks(bernoulli, bits) == []
    assert remarks(bernoulli, bits / 2) == [bernoulli.likelihood.remark]
    assert remarks(binarized, bits) == [binarized.likelihood.remark]


def test_every_measure_has_its_entry_and_every_entry_a_name(data: SequenceDataModule) -> None:
    scores = measure(*make(), data, num_particles=3, progress=False)
    assert scores.keys() <= {entry.key for entry in MEASURES}
    assert len({entry.key for entry in MEASURES}) == len(MEASURES)
    assert len({*HEADINGS.values()}) == len(HEADINGS)
    table = rows({"trained": scores}, 3)
    assert [row["key"] for row in table][:2] == ["explained", "iwae"]
    assert table[-1]["key"] == "frame_unnormalised"
    shown = {*(row["key"] for row in table), "iwae_error"}
    assert shown == flat(scores).keys()
    assert table[1]["label"] == "IWAE, K = 3"
    assert table[1]["standard_error"] == scores["iwae_error"]


def test_measures_over_drawn_pairs_have_their_errors_beside_them(
    data: SequenceDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MOST_PAIRS", 2)
    scores = measure(*make(), data, num_particles=3, progress=False)
    table = {row["key"]: row["standard_error"] for row in rows({"trained": scores}, 3)}
    assert table["e_eq"] == scores["e_eq_error"] != 0
    errors = scores["roll_error"]
    assert isinstance(errors, dict)
    assert errors
    assert all(table[f"roll/{name}"] is error for name, error in errors.items())


def test_parts_take_turns_and_a_part_that_a_model_lacks_is_undefined() -> None:
    of_parts = {"roll": {"a": 1.0, "b": 2.0}, "cap_corr": {"a": 3.0, "b": 4.0}, "commutation": {"a": 5.0}}
    untrained = {"kl": 1.0, **{key: {"a": 9.0} for key in of_parts}}
    table = rows({"trained": {"kl": 0.0, **of_parts}, "untrained": untrained}, 1)
    keys = ["kl", "roll/a", "cap_corr/a", "roll/b", "cap_corr/b", "commutation/a"]
    assert [row["key"] for row in table] == keys
    assert [row["untrained"] for row in table if row["key"] != "roll/b"][:3] == [1.0, 9.0, 9.0]
    assert math.isnan(table[3]["untrained"] or 0)
    assert table[3]["label"] == "roll correlation, b"
    assert {row["note"] for row in table if row["key"].startswith("roll/")} == {"blind to collapse"}
    assert {row["plain_vae"] for row in table} == {None}
    assert BLIND == ("e_eq", "roll", "roll_exact", "cap_corr", "velocity", "commutation")
    assert CONTROLLED == ("e_eq", "roll", "cap_corr")


def test_energies_of_either_sign_count_by_their_squares() -> None:
    model = pyro_tvae.TVAE((1, 4, 4), 4, 2, 4, pyro_tvae.CapsuleRoll(4, 1))
    x = torch.rand(3, 4, 1, 4, 4)
    radial, frames = pyro_tvae.RadialGuide(model).posterior(x), pyro_tvae.MeanFieldGuide(model).posterior(x)
    torch.testing.assert_close(scoring._energy(model, radial), radial["u"].variance.log())  # type: ignore[arg-type, union-attr]
    torch.testing.assert_close(scoring._energy(model, frames), frames["u"].mean)  # type: ignore[arg-type, union-attr]


def test_a_perfect_code_explains_all_of_binarized_pixels(data: SequenceDataModule) -> None:
    """Which are zeros and ones: the pixels themselves cost next to nothing, whatever gray they were."""
    x = torch.cat([batch["x"] for batch in data.batches("test")])
    assert bool(((x > 0.1) & (x < 0.9)).any())
    for likelihood in (BinarizedBernoulli(), BinarizedBernoulli(seed=3)):
        model = TVAE((1, 8, 8), 6, 2, 6, NoTopography(), likelihood=likelihood)
        mean, best = scoring.ends_of_explained(model, data.mean_frame(), x)
        assert float(best.min()) > -1e-5 * x[0].numel()
        assert float(mean.max()) < -1


class Told(MeanFieldGuide):
    """Moves its means by the label, without which it is lost."""

    def posterior(self, x: Tensor, observed: Tensor | None = None, label: Tensor | None = None) -> Any:
        found: Any = super().posterior(x, observed)
        off = torch.full((len(x),), 50.0) if label is None else 0.1 * label
        z = found["z"]
        return {**found, "z": dist.Normal(z.loc + off.reshape(-1, 1, 1, 1), z.scale)}


def test_a_guide_is_judged_with_the_labels_that_it_was_fitted_with(data: SequenceDataModule) -> None:
    """The validation ELBO of a fit is that of an evaluation, up to both errors; without labels it is far below."""
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), 6, 2, 6, NoTopography())
    guide = Told(model)
    fitted = fit(model, guide, data, max_epochs=1, progress=False, seed=0).column("val/elbo")[1][-1]
    scores = flat(measure(model, guide, data, split="validation", num_particles=20, progress=False))
    assert scores["elbo"] == pytest.approx(fitted, rel=0.05)
    record = evaluate(model, guide, data, untrained=make(), num_particles=4, progress=False).record
    assert not record["failed"]
    assert not any("beside x" in note for note in record["notes"])
    batch = next(data.batches("test"))
    without = log_likelihood(model, guide, batch["x"], 20).elbo.mean() / 6
    assert float(without) < 2 * fitted
    assert record["measures"]["trained"]["elbo"] > 1.5 * fitted


class Labelling(TVAE):
    """Observes the label as well."""

    def heads(self, t: Tensor, label: Tensor | None = None) -> None:
        if label is not None:
            pyro.sample("label", dist.Categorical(logits=t.flatten(-3)[..., :10]), obs=label)


def test_a_model_that_observes_labels_is_judged_with_them_and_says_so(data: SequenceDataModule) -> None:
    torch.manual_seed(0)
    model = Labelling((1, 8, 8), 6, 2, 6, NoTopography())
    guide = MeanFieldGuide(model)
    record = evaluate(model, guide, data, num_particles=4, progress=False).record
    assert any(note.startswith("The model is given label beside x") for note in record["notes"])
    x, label = (torch.cat([batch[name] for batch in data.batches("test")]) for name in ("x", "label"))
    expected = log_likelihood(model, guide, x, 50, covariates={"label": label})
    assert record["measures"]["trained"]["elbo"] == pytest.approx(float(expected.elbo.mean()) / 6, rel=0.02)
