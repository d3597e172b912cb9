"""Adversarial training methods compared on small images at equal cost in passes."""
