"""Runs that the page can show: stored, and converted into data for the browser and files."""
