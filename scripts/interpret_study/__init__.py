"""Experiments with attribution maps: a boundary that tilts, and RectGrad with its confounds switched."""
