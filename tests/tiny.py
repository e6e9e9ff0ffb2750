"""The smallest training that goes through every step of a run, for tests that need a run and not its results."""

TINY = [
    "data.n_train=16",
    "data.n_validation=8",
    "data.n_test=12",
    "model.n_capsules=2",
    "fit.max_epochs=1",
    "fit.progress=false",
    "fit.accelerator=cpu",
    "baseline.enabled=false",
    "evaluation.num_particles=2",
]
