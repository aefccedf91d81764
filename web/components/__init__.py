"""What the tabs are made of: controls from settings, colours, scripts and styles."""
