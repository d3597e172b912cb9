"""The study of DRESS and its baselines on DailyDialog (``scripts/dress_experiment.py``)."""
