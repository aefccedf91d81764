"""Changes to a running model, one a file: `base` says what an intervention is, `var/` is VAR."""
