"""Endpoints for `gradio_client` and other programs (docs/api.md)."""
