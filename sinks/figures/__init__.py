"""Figures of what finding and validating came to."""
