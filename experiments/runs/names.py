"""Names: what the files in a run's folder are called."""

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "DATA",
    "EVALUATION",
    "FIGURES",
    "HISTORY",
    "HYDRA",
    "LOCK",
    "LOGS",
    "OF_PLAIN_VAE",
    "PICTURE",
    "PLAIN_VAE",
    "REPORT",
    "ROOM",
    "SELECTIVITY",
    "TRAINED",
    "UNTRAINED",
    "WEIGHTS",
    "WRITTEN",
]

CONFIG, DATA, LOCK, HYDRA, ROOM = "config.yaml", "data.json", ".lock", ".hydra", ".room"
WEIGHTS, UNTRAINED, PLAIN_VAE = "model.safetensors", "untrained.safetensors", "plain_vae.safetensors"
PICTURE = "data.png"  # of the first training sequence, where the data were a file of the user's
TRAINED = "trained.json"  # digests of what a training ended with
EVALUATION, HISTORY, REPORT = "evaluation.json", "history.json", "report.html"
FIGURES, LOGS, CHECKPOINTS, OF_PLAIN_VAE = "figures", "logs", "checkpoints", "plain_vae"  # folders
SELECTIVITY = "selectivity.json"  # what organization says of a map of units, where a figure of it was asked for

# What a run writes of its own accord; its folder holds none of it when it begins.
WRITTEN = (
    *(DATA, PICTURE, UNTRAINED, WEIGHTS, HISTORY, TRAINED, PLAIN_VAE, EVALUATION, REPORT),
    *(FIGURES, LOGS, CHECKPOINTS, OF_PLAIN_VAE),
)
