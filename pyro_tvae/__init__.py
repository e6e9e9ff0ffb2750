"""The Topographic VAE as a Pyro program."""

from .parts import Part
from .topography import CapsuleRoll, NoTopography, Stationary, Topography, Torus, roll

__all__ = ["CapsuleRoll", "NoTopography", "Part", "Stationary", "Topography", "Torus", "roll"]
