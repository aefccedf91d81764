"""Runs that the page can show: kept, made into what goes to the browser, and into files."""
