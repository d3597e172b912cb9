"""Convergence of SI-HG and other minimax methods on small problems: runs, tables and the figure."""
