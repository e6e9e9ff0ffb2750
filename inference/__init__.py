"""Fitting and judging a Topographic VAE: objectives, training, likelihood, equivariance."""
