"""The paper's figures: one command each, runs shared and never made twice, and pictures of what they claim to show."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from pyro_tvae import TVAE, CapsuleRoll, MeanFieldGuide, Torus
from pyro_tvae.experiments import datasets
from pyro_tvae.experiments.config.composition import located
from pyro_tvae.experiments.datasets import Images, Splits
from pyro_tvae.experiments.studies import reproduce as study_module
from pyro_tvae.experiments.studies.paper_figures import DRAWINGS, draw_map
from pyro_tvae.experiments.studies.registry import PAPER, STUDIES, chosen, home
from pyro_tvae.experiments.studies.reproduce import reproduce, reproduce_all
from pyro_tvae.experiments.studies.unit_map import UnitMap, map_units

TINY = [
    "data.n_train=4",
    "data.n_validation=2",
    "data.batch_size=2",
    "fit.max_steps=2",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "evaluation.num_particles=2",
]


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in place of digits: the tests need no file."""

    def source(root: str, download: bool, seed: int) -> Splits:
        pixels = torch.randint(256, (40, 1, 28, 28), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        return Splits(*3 * [Images(pixels, torch.arange(40) % 10)])

    monkeypatch.setattr(datasets, "mnist", source)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path]]:
    """The cells that would have been run, as (configuration, folder)."""
    ran: list[tuple[Any, Path]] = []

    def run(config: Any, folder: Path, *_: object) -> None:
        ran.append((config, folder))
        folder.mkdir(parents=True)
        OmegaConf.save(located(config), folder / "config.yaml", resolve=True)
        provenance = {"hardware": "none", "versions": {}}
        record = {"measures": {"trained": {"explained": 0.5}}, "collapsed": False, **provenance}
        (folder / "evaluation.json").write_text(json.dumps(record))
        (folder / "report.html").touch()

    monkeypatch.setattr(study_module, "_run", run)
    monkeypatch.setattr(study_module, "_draw", lambda *_: None)
    return ran


@pytest.mark.filterwarnings("ignore")
def test_the_map_is_measured_and_drawn_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"output": tmp_path, "progress": said.append}
    options["overrides"] = [*TINY, "data.n_test=40", "model.capsule_dim=16", "topography.grid=[4,4]"]
    record = reproduce("fig3", **options)
    assert len(said) == 3  # the run, its organisation, the drawing
    folder = tmp_path / "fig3-minutes"
    assert record["figures"] == ["tvae_2d_mnist-seed0.png"]
    assert {path.suffix for path in folder.glob("tvae_2d_mnist-seed0.*")} == {".png", ".pdf"}
    values: dict[str, Any] = record["rows"][0]["values"]
    assert 0 < values["map/selectivity_p"][0] <= 1
    assert {"map/slant_untrained", "map/stroke_width_p", "map/selective", "explained"} <= set(values)
    assert "![tvae_2d_mnist-seed0](tvae_2d_mnist-seed0.png)" in (folder / "table.md").read_text()
    assert reproduce("fig3", **options) == record
    assert len(said) == 3
    (folder / "tvae_2d_mnist-seed0.pdf").unlink()
    reproduce("fig3", **options)
    assert len(said) == 4
    judged = next(tmp_path.rglob("evaluation.json"))
    os.utime(judged, (2e9, 2e9))  # a clock that was wrong says nothing of what was drawn from what
    reproduce("fig3", **options)
    assert len(said) == 4
    judged.write_text(json.dumps(json.loads(judged.read_text()) | {"name": "judged again"}))
    os.utime(judged, (0, 0))
    reproduce("fig3", **options)
    assert len(said) == 5
    assert len([*folder.glob("*seed0*")]) == 2
    (folder / "drawn.json").unlink()
    (folder / "tvae_2d_mnist-seed0.png").write_bytes(b"mine")  # which it was all along, as far as anything says
    reproduce("fig3", **options)
    assert (folder / "tvae_2d_mnist-seed0-1.png").read_bytes() == b"mine"
    assert (folder / "tvae_2d_mnist-seed0.png").read_bytes().startswith(b"\x89PNG")
    reproduce("fig3", **options)
    assert len([*folder.glob("*seed0*")]) == 4


@pytest.mark.filterwarnings("ignore")
def test_two_figures_of_one_experiment_share_its_run(tmp_path: Path) -> None:
    said: list[str] = []
    overrides = [*TINY, "data.n_test=8", "model.n_capsules=2"]
    records = list(reproduce_all(("fig1", "fig6"), overrides=overrides, output=tmp_path, progress=said.append))
    assert len(said) == 3  # one run, two drawings
    assert len(list(tmp_path.rglob("evaluation.json"))) == 1
    assert records[0]["rows"] == records[1]["rows"]
    name = "tvae_lpartial_mnist_generalization-seed0.png"
    assert all((tmp_path / folder / name).stat().st_size > 1000 for folder in ("fig1-minutes", "fig6-minutes"))


def test_all_of_the_paper_runs_every_experiment_once(tmp_path: Path, composed: list[tuple[Any, Path]]) -> None:
    overrides = ["data.source.root=elsewhere", "data.source.full_circle=true"]
    records = list(reproduce_all(chosen("all"), overrides=overrides, seeds=[4, 5], output=tmp_path, progress=str))
    assert len(records) == len(PAPER)
    names = [config.name for config, _ in composed]
    assert sorted(names) == sorted(2 * list({row for name in PAPER for row in STUDIES[name].rows}))
    assert {config.seed for config, _ in composed} == {4, 5}
    for config, folder in composed:
        sprites = "dsprites" in config.name
        # An override applies where there is such a setting: dSprites have no root, MNIST no circle.
        assert config.data.source.get("root") == (None if sprites else "elsewhere")
        assert config.data.source.get("full_circle") == (True if sprites else None)
        assert folder.parent.name == config.name
    assert home("fig4", "tvae_lpartial_dsprites") == "table2"
    assert [row["seeds"] for row in records[PAPER.index("fig4")]["rows"]] == [[4, 5], [4, 5]]


@pytest.mark.parametrize(
    ("names", "override", "said"),
    [
        (("table1", "fig4"), "data.source.rot=elsewhere", "data.source.rot"),
        (("fig3",), "data.source.full_circle=true", "full_circle"),
        (("fig3",), "nonsense", "is not an override"),
    ],
)
def test_a_mistake_shows_before_anything_runs(
    names: tuple[str, ...], override: str, said: str, tmp_path: Path, composed: list[tuple[Any, Path]]
) -> None:
    with pytest.raises(ValueError, match=said):
        list(reproduce_all(names, overrides=[override], output=tmp_path))
    assert not composed
    with pytest.raises(ValueError, match="no study called 'fig2'"):
        chosen("fig2")


def sequences(x: torch.Tensor) -> Any:
    """A trained run, as far as a drawing looks: noise for weights, and x (N, 6, 1, 8, 8) for test sequences."""
    torch.manual_seed(0)
    model = TVAE((1, 8, 8), n_frames=6, n_capsules=2, capsule_dim=6, topography=CapsuleRoll(3))
    guide = MeanFieldGuide(model)
    batch = {"x": x, "moving": torch.arange(len(x)) % 2}
    data = SimpleNamespace(
        batches=lambda *_, **__: iter([batch]), datasets={"test": SimpleNamespace(moving=("hue", "scale"))}
    )
    config = SimpleNamespace(evaluation=SimpleNamespace(context=4))
    return SimpleNamespace(model=model, guide=guide, data=data, device=torch.device("cpu"), config=config)


def test_forecasts_saw_nothing_of_what_they_foretell() -> None:
    x = torch.rand(2, 6, 1, 8, 8)
    other = x.clone()
    other[:, 4:] = torch.rand(2, 2, 1, 8, 8)
    pictures = [
        np.asarray(DRAWINGS["forecast"](sequences(values), {}, "T").axes[0].images[0].get_array())
        for values in (x, other)
    ]
    height = 112
    changed = (pictures[0] != pictures[1]).any(axis=(1, 2))
    assert changed[:height].any()  # the true frames
    assert not changed[height + 3 : 3 * height].any()  # decoded, and the capsules


def test_traversals_name_what_moves() -> None:
    axis = DRAWINGS["traversals"](sequences(torch.rand(4, 6, 1, 8, 8)), {}, "T").axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [
        "hue: true",
        "reconstructed",
        "frame 0, rolled",
        "scale: true",
        "reconstructed",
        "frame 0, rolled",
    ]


def test_the_drawn_map_leaves_units_without_a_preference_blank() -> None:
    preferred = torch.tensor([[0, 1, -1], [2, -1, -1], [1, 1, 0]])
    maps = torch.randn(3, 3)
    units = UnitMap(torch.rand(3, 3, 1, 4, 4), torch.randn(3, 3, 3), preferred, maps, maps.abs())
    numbers = {"selectivity": 0.5, "selectivity_p": 1e-4, "slant": 0.1, "slant_p": 0.2, "slant_untrained": 0.05}
    figure = draw_map(units, numbers, "T")
    panels = figure.axes[:4]
    drawn = panels[1].images[0].get_array()
    assert drawn is not None
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), preferred.numpy() < 0)
    titles = [axis.get_title(loc="left") for axis in panels]
    assert "6 units" in titles[1]
    assert "0.50, p < 0.001" in titles[1]
    assert "0.10, p = 0.200; untrained 0.05" in titles[2]


def test_maps_are_of_tori_only() -> None:
    torus = TVAE((1, 28, 28), 1, n_capsules=1, capsule_dim=9, topography=Torus((3, 3), (3, 3)))
    pixels = torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8)
    data = datasets.SequenceDataModule(Splits(*3 * [Images(pixels, torch.arange(20) % 2)]), n_frames=1)
    units = map_units(torus, MeanFieldGuide(torus), data)
    assert units.strongest.shape == (3, 3, 1, 28, 28)
    assert units.selectivity.shape == (2, 3, 3)
    capsules = TVAE((1, 28, 28), 1, n_capsules=2, capsule_dim=9, topography=CapsuleRoll(1, 0))
    with pytest.raises(ValueError, match="one capsule on a torus"):
        map_units(capsules, MeanFieldGuide(capsules), data)
