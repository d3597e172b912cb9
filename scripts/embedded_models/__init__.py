"""How the models that ship with dialogkit were made: corpus, invented voices, training, measuring."""
