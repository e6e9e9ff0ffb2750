"""The command line. Heavy imports wait until a command needs them, so that help is instant."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .interruption import NOTHING, catch_signals, goes_on_with, leave_signals, typed
from .outlets import outlasting

if TYPE_CHECKING:
    from .config.allowlist import Allowlist

__all__ = ["app", "main"]

app = typer.Typer(
    name="pyro-tvae",
    help="The Topographic VAE as a Pyro program: train it, judge it, look at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart/<time>.")]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="A module of yours whose parts a stored run may use; repeatable."),
]
Split = Annotated[str, typer.Option(help="test, or validation while a model is being chosen.")]
Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[data.SETTING=VALUE]...", help="Other data than the run's own, such as data.source.path=FILE."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that was made with other settings.")]
RECORDS = "Kept records, whose seeds are not run again. Default: experiments/results, where there is one."
STUDY = (
    "table1, table2, fig1, fig3, fig4, fig6, fig22, fig23, all of these; radial, guides, priors; recipe, recipe_short, "
    "recipe_long, recipe_likelihood, recipe_hour."
)
HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=HYDRA)
def train(context: typer.Context, imports: Imports = None) -> None:
    """Train, evaluate and report; without arguments the digits quickstart.

    Arguments are Hydra overrides: topography=stationary, fit.max_epochs=5, experiment=lpartial, resume=RUN;
    --multirun seed=0,1,2 runs several; --cfg job prints the configuration.
    """
    with _answered():
        from .commands.hydra_entry import run_with_hydra

        run_with_hydra(context.args, imports or ())


@contextmanager
def _answered(sentence: str = NOTHING) -> Iterator[None]:
    """Answer errors in one sentence each, and interruptions in this one."""
    from .config.errors import plain_errors

    with plain_errors(), goes_on_with(sentence):
        yield


@contextmanager
def _stored(run: Path, imports: list[str] | None, kept: str = "", lost: str = "") -> Iterator[Allowlist]:
    """The same for a command on a stored run, which may have kept or lost a part; what its configuration may call."""
    way_on = f"{kept}; go on with" if kept else f"{lost}every file in {run} is whole; start over with"
    with _answered(f"{way_on}: {typed()}"):
        from pyro_tvae.files import staying

        from .config.allowlist import Allowlist

        with staying(run) if run.is_dir() else nullcontext():
            yield Allowlist.importing(imports or ())


def _whole_numbers(option: str, text: str, example: str) -> list[int]:
    """An option's numbers, separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{option} is {text!r}; expected whole numbers, such as {example}.") from None


@app.command()
def evaluate(
    run: RunFolder, data: Data = None, split: Split = "test", overwrite: Overwrite = False, imports: Imports = None
) -> None:
    """Judge a trained run again and rewrite its report."""
    with _stored(run, imports) as allow:
        from .commands.evaluate import evaluate_run

        evaluate_run(run, split, allow, data or (), overwrite)


@app.command()
def report(run: RunFolder, imports: Imports = None) -> None:
    """Rewrite a run's report.html from what its folder holds."""
    with _stored(run, imports) as allow:
        from .commands.evaluate import report_run

        print(f"report: {report_run(run, allow)}")


@app.command()
def posterior(
    run: RunFolder,
    data: Data = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws per sequence, and chain of NUTS.")] = 100,
    sequences: Annotated[int, typer.Option(min=1, help="Test sequences to draw for, the first ones.")] = 8,
    method: Annotated[str, typer.Option(help="guide, importance, or (small models) nuts.")] = "guide",
    chains: Annotated[int, typer.Option(min=1, help="Of NUTS.")] = 2,
    warmup: Annotated[int, typer.Option(min=1, help="Adaptation steps of NUTS.")] = 300,
    thin: Annotated[int, typer.Option(min=1, help="Keep every so many draws of NUTS.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    groups: Annotated[str, typer.Option(help="Groups to write, separated by commas; all by default.")] = "",
    variables: Annotated[str, typer.Option(help="Of the posterior and the prior, such as z,t; all by default.")] = "",
    output: Annotated[Path | None, typer.Option(help="The file of draws. Default: posterior.nc in RUN.")] = None,
    overwrite: Overwrite = False,
    imports: Imports = None,
) -> None:
    """Write draws of a run's posterior as posterior.nc, for ArviZ, and a page of plots that judge them."""
    lost = "the draws of NUTS that were made are lost; " if method == "nuts" else ""
    with _stored(run, imports, lost=lost) as allow:
        from .commands.posterior import GROUPS, posterior_run

        file, page = posterior_run(
            run,
            draws=draws,
            sequences=sequences,
            method=method,
            chains=chains,
            warmup=warmup,
            thin=thin,
            seed=seed,
            groups=groups.split(",") if groups else GROUPS,
            variables=variables.split(",") if variables else (),
            output=output,
            overwrite=overwrite,
            allow=allow,
            data=data or (),
        )
        print(f"posterior: {file}\npage: {page}")


@app.command()
def likelihood(
    run: RunFolder,
    data: Data = None,
    particles: Annotated[str, typer.Option(help="Numbers of particles K, separated by commas.")] = "1,10,100,1000",
    frame_particles: Annotated[
        int, typer.Option(min=1, help="Also K / M draws of the energies, with M of z per frame in each.")
    ] = 1,
    sequences: Annotated[int, typer.Option(min=1, help="The first sequences of the split.")] = 32,
    temperatures: Annotated[int, typer.Option(min=0, help="Of annealed importance sampling; 0 leaves it out.")] = 0,
    chains: Annotated[int, typer.Option(min=1, help="Of annealing, per sequence.")] = 16,
    laplace: Annotated[
        bool, typer.Option("--laplace", help="Draw, and anneal, from each sequence's Laplace approximation.")
    ] = False,
    split: Split = "test",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="The file of the record. Default: likelihood.json in RUN.")
    ] = None,
    overwrite: Overwrite = False,
    imports: Imports = None,
) -> None:
    """Show how a run's bound of log p(x) grows with K, and what annealed importance sampling finds."""
    place = output.parent if output else run
    with _stored(run, imports, f"the estimates that were made are kept in {place}") as allow:
        counts = _whole_numbers("particles", particles, "1,10,100")
        from .commands.likelihood import likelihood_run, print_likelihood

        record = likelihood_run(
            run,
            particles=counts,
            frame_particles=frame_particles,
            sequences=sequences,
            temperatures=temperatures,
            chains=chains,
            laplace=laplace,
            split=split,
            seed=seed,
            output=output,
            overwrite=overwrite,
            allow=allow,
            data=data or (),
        )
        print_likelihood(record)


@app.command()
def calibrate(
    run: RunFolder,
    simulations: Annotated[int, typer.Option(min=1, help="Sequences to simulate, five per bin or more.")] = 200,
    draws: Annotated[int, typer.Option(min=1, help="Of the posterior of each; a multiple of the bins less 1.")] = 99,
    bins: Annotated[int, typer.Option(min=2, help="Of the histograms.")] = 10,
    method: Annotated[str, typer.Option(help="guide, or (small models) nuts.")] = "guide",
    warmup: Annotated[int, typer.Option(min=1, help="Adaptation steps of NUTS.")] = 300,
    thin: Annotated[int, typer.Option(min=1, help="Keep every so many draws of NUTS.")] = 5,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    output: Annotated[Path | None, typer.Option(help="The file of ranks. Default: calibration.nc in RUN.")] = None,
    overwrite: Overwrite = False,
    imports: Imports = None,
) -> None:
    """Simulation-based calibration of a run's posterior: is it as sure as it may be? Goes on where it was cut."""
    place = output.parent if output else run
    with _stored(run, imports, f"the simulations that were done are kept in {place}") as allow:
        from .commands.calibrate import calibrate_run

        file, page, verdict = calibrate_run(
            run,
            simulations=simulations,
            draws=draws,
            bins=bins,
            method=method,
            warmup=warmup,
            thin=thin,
            seed=seed,
            output=output,
            overwrite=overwrite,
            allow=allow,
        )
        print(f"{verdict}\ncalibration: {file}\npage: {page}")


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN... [data.SETTING=VALUE]...", help="Folders of two runs or more; and other data."),
    ],
    particles: Annotated[int, typer.Option(min=1, help="Draws K from each guide per sequence.")] = 1000,
    sequences: Annotated[int, typer.Option(min=2, help="The first sequences of the split.")] = 32,
    temperatures: Annotated[int, typer.Option(min=0, help="Of annealing, instead of importance weights; or 0.")] = 0,
    chains: Annotated[int, typer.Option(min=1, help="Of annealing, per sequence.")] = 16,
    split: Split = "test",
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    output: Annotated[Path | None, typer.Option(help="A JSON file of the table and every sequence's bounds.")] = None,
    overwrite: Overwrite = False,
    imports: Imports = None,
) -> None:
    """Compare runs by log p(x) of the same sequences, paired, and say whether the bounds can tell them apart."""
    with _answered(f"nothing was written; start over with: {typed()}"):
        from .commands.compare import compare_runs, print_comparison
        from .config.allowlist import Allowlist

        data = [str(word) for word in runs if str(word).startswith("data.") and "=" in str(word)]
        result = compare_runs(
            [run for run in runs if str(run) not in data],
            particles=particles,
            sequences=sequences,
            temperatures=temperatures,
            chains=chains,
            split=split,
            seed=seed,
            output=output,
            overwrite=overwrite,
            allow=Allowlist.importing(imports or ()),
            data=data,
        )
        print_comparison(result)
        if output is not None:
            print(f"comparison: {output}")


@app.command(context_settings=HYDRA)
def reproduce(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=STUDY)],
    budget: Annotated[str, typer.Option(help="paper, hour or minutes, for studies of the paper.")] = "minutes",
    seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "0",
    output: Annotated[Path, typer.Option(help="Where studies are kept.")] = Path("runs/reproduce"),
    records: Annotated[Path | None, typer.Option(metavar="DIR", help=RECORDS)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Also write what was run to the record and RESULTS.md.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Leave records out: run all seeds asked for.")] = False,
) -> None:
    """Run a whole table or figure, row by row and seed by seed; what is there already is not run again.

    Further arguments are Hydra overrides of every row that has such a setting, such as data.source.root=DIR.
    """
    with _answered():
        numbers = _whole_numbers("seeds", seeds, "0,1,2")
        if fresh and (keep or records):
            raise ValueError("--fresh leaves records out, so it goes with neither --keep nor --records; choose one.")
        from .config.former_names import announced
        from .studies.comparison import markdown
        from .studies.kept import FOLDER
        from .studies.registry import chosen
        from .studies.reproduce import CellsFailed, reproduce_all
        from .studies.results import check_own, write_results

        if records is not None and not records.is_dir() and not keep:
            raise ValueError(f"--records: there is no folder {records}; --keep makes one.")
        folder = records or (FOLDER if keep or FOLDER.is_dir() else None)
        if keep and folder is not None:
            check_own(folder)
        failed: CellsFailed | None = None
        with goes_on_with(f"what is done is in {output}; go on with: {typed()}", decides=True):
            try:
                for record in reproduce_all(
                    chosen(name),
                    budget=budget,
                    seeds=numbers,
                    overrides=announced(context.args),
                    output=output,
                    records=None if fresh else folder,
                    keep=keep,
                ):
                    print(markdown(record))
            except CellsFailed as error:
                failed = error
        print(f"tables, figures and runs: {output}")
        if keep and folder is not None:
            print(f"kept: {write_results(folder)}")
        if failed is not None:
            print(f"pyro-tvae: {failed}", file=sys.stderr)
            raise SystemExit(2)


@app.command()
def results(
    records: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of records. Default: experiments/results.")
    ] = None,
) -> None:
    """Write RESULTS.md and its pictures from kept records: what was run, and which published claims were seen."""
    with _answered():
        from .studies.kept import FOLDER
        from .studies.results import write_results

        print(f"results: {write_results(records or FOLDER)}")


@app.command(name="list")
def list_() -> None:
    """Show every part that can be swapped, and the runs in ./runs."""
    from .config.composition import options
    from .runs.names import EVALUATION
    from .runs.run import runs_in

    for group, entries in options().items():
        print(group)
        width = max(22, *map(len, entries))
        for name, sentence in entries.items():
            print(f"  {group}={name:<{width}} {sentence}")
    runs = runs_in(Path("runs"))
    print("runs" if runs else "no runs in ./runs yet")
    for run in runs:
        print(f"  {run}  {'evaluated' if run.has(EVALUATION) else 'not finished'}")


@app.command()
def benchmark(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="speed, throughput, memory, scaling, growth, startup, gradients; these by default. And turns, "
            "quickstart, gpu, large_file."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch may use.")] = 2,
    output: Annotated[
        Path | None,
        typer.Option(help="JSON file of the record; by default runs/benchmark/<time>.json."),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            help="Checkout of another version that growth (the product with W by default), turns and quickstart are "
            "measured beside."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Of gpu: cuda, or cpu to try it at a small size.")] = "cuda",
) -> None:
    """Measure ratios within one run at the paper's MNIST size: speed, memory, scaling, growth, start-up, noise."""
    from datetime import datetime

    file = output or Path("runs/benchmark") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.json"
    with _answered(f"benchmarks that were finished, if any, are in {file.with_suffix('')}.unfinished-…{file.suffix}."):
        from .benchmarks import run_suite

        run_suite(names, threads=threads, output=file, beside=beside, device=device)


def main() -> None:
    """Entry point of the command ``pyro-tvae``."""
    catch_signals()
    try:
        with outlasting(), goes_on_with(NOTHING):
            app()
    finally:
        leave_signals()


if __name__ == "__main__":
    main()
