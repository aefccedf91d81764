"""Pictures of maps and of runs; `visualization` has the public names."""
