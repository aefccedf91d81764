"""Long runs: one protocol for progress, Stop, deadline and owner, and one runner for the page."""
