"""The probes, one per file; `base` defines a probe."""
