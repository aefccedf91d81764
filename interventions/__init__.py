"""Changes to a running model, one per file: `base` defines an intervention, `var/` is VAR."""
