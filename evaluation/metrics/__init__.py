"""Metrics: figures of a whole run from its judged answers. `listed.METRICS` has them all."""
