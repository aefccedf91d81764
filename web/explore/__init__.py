"""The Explore tab: its form, its events, and what they do."""
