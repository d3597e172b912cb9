"""The logic of ``diversity_judgement.py`` and ``known_diversity.py``."""
