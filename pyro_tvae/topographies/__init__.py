"""Topographies: which local energies pool which latents on the (frame, position) lattice."""

from .base import Topography, roll
from .grids import GridRoll, Matrix
from .published import CapsuleRoll, NoTopography, Stationary, Torus

__all__ = ["CapsuleRoll", "GridRoll", "Matrix", "NoTopography", "Stationary", "Topography", "Torus", "roll"]
