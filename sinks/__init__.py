"""Sink profiles of known models (`profiles/`), one TOML file each."""
