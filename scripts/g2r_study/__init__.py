"""The experiment of ``scripts/g2r_experiment.py``."""
