"""Commands: what the words of the command line do with a run."""
