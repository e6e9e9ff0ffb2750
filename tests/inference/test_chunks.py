"""Chunks: memory that runs out makes them smaller, draws stay as many, and no room at all is said in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide
from pyro_tvae.inference import Annealing, annealed_importance, log_likelihood, log_weights, to_arviz
from pyro_tvae.inference.chunks import CHUNK_BYTES, MOST_BYTES, chunk_of, in_chunks


class Small(TVAE):
    """Decodes so many frames at once, and has no memory for more."""

    room = 10**9
    asked: list[int]

    def decode(self, t: Tensor) -> Any:
        frames = t[..., 0, 0].numel()
        self.asked.append(frames)
        if frames > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {frames} frames.\nAnd more.")
        return super().decode(t)


@pytest.fixture
def fitted() -> tuple[Small, MeanFieldGuide, Tensor]:
    torch.manual_seed(0)
    model = Small((1, 2, 2), 3, 1, 3, CapsuleRoll(3), mu=1.0)
    model.asked = []
    return model, MeanFieldGuide(model), torch.rand(4, 3, 1, 2, 2)


def test_chunks_are_halved_where_memory_runs_out_and_stay_so() -> None:
    sizes: list[int] = []

    def make(start: int, number: int) -> range:
        sizes.append(number)
        if number > 3:
            raise torch.OutOfMemoryError("full")
        return range(start, start + number)

    assert [i for part in in_chunks(10, 8, make) for i in part] == [*range(10)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: not enough")])
def test_no_room_at_all_is_said_in_one_sentence(error: RuntimeError) -> None:
    def make(start: int, number: int) -> None:
        raise error

    with pytest.raises(
        torch.OutOfMemoryError, match=r"^there is no room in memory for a single frame at a time .*CPU\.$"
    ):
        list(in_chunks(4, 4, make, "frame"))


def test_other_errors_are_left_alone() -> None:
    def make(start: int, number: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        list(in_chunks(4, 4, make))


def test_chunks_are_sized_by_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 1, 1, 1, 2**18)  # 1 MiB a draw

    class OnDevice:
        device = torch.device("cuda", 0)
        numel, element_size = x.numel, x.element_size

    on_device: Any = OnDevice()
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    for free, expected in ((2**40, MOST_BYTES), (2**30, 2**30 // 16), (2**20, CHUNK_BYTES)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2**41))
        assert chunk_of(on_device) == expected // 2**20
    assert chunk_of(x) == CHUNK_BYTES // 2**20
    assert chunk_of(x, 5 * 2**20) == 5
    assert chunk_of(x, 1) == 1


Task = Callable[[Small, MeanFieldGuide, Tensor], Any]
TASKS: dict[str, tuple[int, Task]] = {
    # frames that there is room for, and what is asked for: more than that at once
    "weights": (4 * 3 * 8, lambda model, guide, x: log_weights(model, guide, x, 50, seed=1)),
    "sequences": (3, lambda model, guide, x: log_likelihood(model, guide, x, 5).iwae),
    "frames": (4 * 3 * 2, lambda model, guide, x: log_likelihood(model, guide, x, 2, frame_particles=16).iwae),
    "annealing": (
        8 * 3,
        lambda model, guide, x: (
            annealed_importance(
                model, guide, x, annealing=Annealing(num_chains=4, num_temperatures=3, leapfrog_steps=1)
            ).log_p
        ),
    ),
    "posterior": (
        4 * 3 * 8,
        lambda model, guide, x: torch.as_tensor(
            to_arviz(model, guide, x, draws=40, method="importance", groups=("log_likelihood",))["log_likelihood"][
                "x"
            ].values
        ),
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_what_draws_many_goes_on_with_smaller_chunks(name: str, fitted: tuple[Small, MeanFieldGuide, Tensor]) -> None:
    model, guide, x = fitted
    room, task = TASKS[name]
    whole = task(model, guide, x)
    assert max(model.asked) > room  # it would not fit
    model.room = room
    assert task(model, guide, x).shape == whole.shape
    model.room = 0
    with pytest.raises(torch.OutOfMemoryError, match=r"^there is no room in memory for a single") as caught:
        task(model, guide, x)
    assert "\n" not in str(caught.value)


def test_a_resample_in_smaller_chunks_is_of_the_draws_that_were_weighed(
    fitted: tuple[Small, MeanFieldGuide, Tensor],
) -> None:
    model, guide, x = fitted
    model.room = 4 * 3 * 8
    data = to_arviz(model, guide, x, draws=40, method="importance", seed=3, groups=("posterior", "sample_stats"))
    # The stored weight of each draw is that of its latents, computed anew: log p(x, z, u) − log q(z, u | x).
    values = {site: torch.as_tensor(data["posterior"][site].values)[0] for site in ("z", "u")}
    expected = _weights(model, guide, x, values)
    found = torch.as_tensor(data["sample_stats"]["log_weight"].values)[0]
    assert torch.allclose(found.double(), expected.double(), atol=1e-3)


def _weights(model: Small, guide: MeanFieldGuide, x: Tensor, values: dict[str, Tensor]) -> Tensor:
    model.room = 10**9
    posterior: Any = guide.posterior(x)
    log_w = model.decode(model.compose(values)).log_prob(x).sum(-1)
    for site, prior in model.prior_distributions().items():
        log_w = log_w + prior.log_prob(values[site]) - posterior[site].to_event(3).log_prob(values[site])
    return log_w.detach()
