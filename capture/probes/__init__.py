"""What can be looked at in a run, one probe a file; `base` says what a probe is."""
