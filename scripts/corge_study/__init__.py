"""The study of exemplar-based generation on DailyDialog (``scripts/corge_experiment.py``)."""
