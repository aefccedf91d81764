"""Figures of the results of finding and validating."""
