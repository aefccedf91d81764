"""Finding the dimensions that mark a model's sinks: statistics, their reduction, the decision."""
