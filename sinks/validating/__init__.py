"""Validating a sink profile on samples that finding has not used."""
