"""Runs: what a run's folder holds, who may read it, who is at work on it, and how one goes on."""
