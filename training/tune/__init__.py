"""Hyper-parameter sweeps of the response model: Ray Tune with ASHA and Optuna, resumable at any moment."""
