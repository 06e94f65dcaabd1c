"""How the page looks: system fonts, quiet colours, one accent; and what gradio leaves to us (page.css, page.js)."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).parent

HEADER = """
<header>
  <h1>Genres</h1>
  <p>Generation and restoration of images and videos. Everything runs on this machine.</p>
</header>
"""

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "DejaVu Sans", "sans-serif"]
MONOSPACE_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """Stone grey with a deep teal; no font or file comes from another server."""
    colours = gr.themes.colors
    return gr.themes.Base(
        primary_hue=colours.teal,
        secondary_hue=colours.teal,
        neutral_hue=colours.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONTS,
        font_mono=MONOSPACE_FONTS,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_800",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_shadow="none",
        border_color_accent="*primary_700",
        color_accent="*primary_700",
        link_text_color="*primary_700",
        link_text_color_hover="*primary_800",
        link_text_color_active="*primary_800",
        link_text_color_visited="*primary_700",
        link_text_color_dark="*primary_400",
        link_text_color_hover_dark="*primary_300",
        link_text_color_active_dark="*primary_300",
        link_text_color_visited_dark="*primary_400",
        checkbox_background_color_selected="*primary_700",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_600",
        checkbox_border_color_selected="*primary_700",
        checkbox_border_color_selected_dark="*primary_500",
        checkbox_label_background_fill="*neutral_100",
        checkbox_label_background_fill_hover="*neutral_200",
        checkbox_label_background_fill_dark="*neutral_800",
        checkbox_label_background_fill_hover_dark="*neutral_700",
        input_background_fill="white",
        input_background_fill_dark="*neutral_800",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_border_color="*primary_700",
        button_primary_border_color_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="*neutral_200",
        button_secondary_background_fill_hover="*neutral_300",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_500",
    )


CSS = (FOLDER / "page.css").read_text(encoding="utf-8")
HEAD = f"<script>{(FOLDER / 'page.js').read_text(encoding='utf-8')}</script>"


def fold(title: str, name: str) -> gr.Column:
    """A section that opens at a press. Its fields are there from the start: gradio's own one drops what comes to its
    fields while they are being made."""
    button = f'<button type="button" class="fold" aria-expanded="false" aria-controls="{name}">{title}</button>'
    gr.HTML(button, padding=False, min_height=0)
    return gr.Column(elem_id=name, elem_classes="folded")
