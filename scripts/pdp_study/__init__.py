"""The parts of ``scripts/evaluate_pdp.py``."""
