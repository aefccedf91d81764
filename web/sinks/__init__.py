"""The Sinks tab: finding and validating sink dimensions."""
