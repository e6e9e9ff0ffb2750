"""Evaluation: every measure of a fitted model, beside its controls."""
