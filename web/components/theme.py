"""Colours and fonts of Gradio's components; the inspector has its own (`static/inspector.css`)."""

from __future__ import annotations

import gradio as gr

SANS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Noto Sans",
    "sans-serif",
)
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def theme() -> gr.themes.Base:
    """Plain surfaces, thin lines, one blue; only fonts that the system has."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=SANS,
        font_mono=MONO,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_sm,
    ).set(
        body_background_fill="#f7f8fa",
        body_background_fill_dark="#0f1216",
        body_text_color="#1b2027",
        body_text_color_dark="#e4e8ee",
        body_text_color_subdued="#5b6572",
        body_text_color_subdued_dark="#9aa5b3",
        block_background_fill="#ffffff",
        block_background_fill_dark="#14181e",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#14181e",
        background_fill_secondary="#f3f5f7",
        background_fill_secondary_dark="#1c2129",
        border_color_primary="#e1e5ea",
        border_color_primary_dark="#272d36",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_title_text_weight="500",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1c2129",
        input_border_width="1px",
        input_border_color="#c9d0d8",
        input_border_color_dark="#3a424e",
        color_accent="#2257c4",
        button_primary_background_fill="#2257c4",
        button_primary_background_fill_hover="#1b469f",
        button_primary_background_fill_dark="#2f66d0",
        button_primary_text_color="#ffffff",
        button_large_text_weight="600",
        slider_color="#2257c4",
        slider_color_dark="#86aef7",
    )
