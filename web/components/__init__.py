"""Building blocks of the tabs: controls made from settings, colours, scripts and styles."""
