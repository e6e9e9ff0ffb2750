"""Hydra configuration groups; every group is a swappable part."""
