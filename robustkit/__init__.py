"""Robustness of classifiers: nothing can be imported from this package yet.

See the change log for what each release adds.
"""

__all__: list[str] = []
