"""The command line. Heavy imports wait until a command needs them, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

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
HYDRA = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=HYDRA)
def train(context: typer.Context) -> None:
    """Train, evaluate and report; without arguments the digits quickstart.

    Arguments are Hydra overrides: topography=stationary, fit.max_epochs=5, experiment=lpartial, resume=RUN;
    --multirun seed=0,1,2 runs several; --cfg job prints the configuration.
    """
    from .config import plain_errors, run_with_hydra

    with plain_errors():
        run_with_hydra(_train, context.args)


def _train(config: object) -> None:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from .config import plain_errors
    from .runs import train_run

    assert isinstance(config, DictConfig)
    with plain_errors():
        train_run(config, Path(HydraConfig.get().runtime.output_dir))


@app.command()
def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="test, or validation while a model is being chosen.")] = "test",
) -> None:
    """Judge a trained run again and rewrite its report."""
    from .config import plain_errors

    with plain_errors():
        from .runs import evaluate_run

        evaluate_run(run, split)


@app.command()
def report(run: RunFolder) -> None:
    """Rewrite a run's report.html from what its folder holds."""
    from .config import plain_errors

    with plain_errors():
        from .runs import report_run

        print(f"report: {report_run(run)}")


@app.command()
def posterior(
    run: RunFolder,
    draws: Annotated[int, typer.Option(min=1, help="Draws per sequence.")] = 100,
    sequences: Annotated[int, typer.Option(min=1, help="Test sequences to draw for.")] = 8,
    method: Annotated[str, typer.Option(help="guide, importance, or (small models) nuts.")] = "guide",
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Write draws of a run's posterior as posterior.nc, for ArviZ, and a page of plots that judge them."""
    from .config import plain_errors

    with plain_errors():
        from .posterior import posterior_run

        file, page = posterior_run(run, draws=draws, sequences=sequences, method=method, seed=seed)
        print(f"posterior: {file}\npage: {page}")


@app.command(name="list")
def list_() -> None:
    """Show every part that can be swapped, and the runs in ./runs."""
    from .config import options

    for group, entries in options().items():
        print(group)
        for name, sentence in entries.items():
            print(f"  {group}={name:<22} {sentence}")
    runs = sorted(path for path in Path("runs").rglob("config.yaml") if path.parent.name != ".hydra")
    print("runs" if runs else "no runs in ./runs yet")
    for config in runs:
        state = "evaluated" if (config.parent / "evaluation.json").is_file() else "not finished"
        print(f"  {config.parent}  {state}")


@app.command()
def benchmark(
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch may use.")] = 2,
    output: Annotated[Optional[Path], typer.Option(help="Also write the record as JSON.")] = None,  # noqa: UP045
) -> None:
    """Measure speed at the paper's MNIST size as ratios to bare matrix products, all in one run."""
    from .config import plain_errors

    with plain_errors():
        from .benchmarks import speed

        speed.print_record(speed.run(threads=threads, output=output))


def main() -> None:
    """Entry point of the command ``pyro-tvae``."""
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
