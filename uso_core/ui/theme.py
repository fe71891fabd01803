"""The page's look: system fonts, a neutral canvas, one accent colour, steps of 8 pixels, text of 14 and 12."""

from __future__ import annotations

from gradio.themes import Base, Size, colors

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
TEXT = Size(xxs="11px", xs="12px", sm="12px", md="14px", lg="14px", xl="18px", xxl="24px", name="uso_text")
SPACING = Size(xxs="2px", xs="2px", sm="4px", md="6px", lg="8px", xl="8px", xxl="8px", name="uso_spacing")
RADIUS = Size(xxs="2px", xs="4px", sm="4px", md="6px", lg="8px", xl="10px", xxl="12px", name="uso_radius")


def theme() -> Base:
    """Light and dark; every text at 4.5:1 or better on what it stands on, which the browser tests measure."""
    return Base(
        primary_hue=colors.indigo, secondary_hue=colors.indigo, neutral_hue=colors.zinc,
        text_size=TEXT, spacing_size=SPACING, radius_size=RADIUS,
        font=FONTS, font_mono=("ui-monospace", "Consolas", "monospace"),
    ).set(
        body_background_fill="*neutral_100", body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        block_background_fill="white", block_background_fill_dark="*neutral_900",
        block_border_width="1px", block_border_color="*neutral_200", block_border_color_dark="*neutral_800",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_600", block_title_text_color_dark="*neutral_300",
        block_title_text_size="12px", block_label_text_size="12px", block_info_text_size="12px",
        block_padding="8px", block_shadow="none", block_label_shadow="none", form_gap_width="0px",
        input_background_fill="white", input_background_fill_dark="*neutral_800", input_border_width="1px",
        input_border_color="*neutral_300", input_border_color_dark="*neutral_700", input_padding="6px 8px",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        input_border_color_focus="*primary_500", input_border_color_focus_dark="*primary_400",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600", button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white", button_primary_text_color_dark="white",
        button_secondary_background_fill="white", button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300", button_secondary_border_color_dark="*neutral_700",
        button_secondary_text_color="*neutral_800", button_secondary_text_color_dark="*neutral_100",
        button_border_width="1px", button_transition="none",
        button_large_padding="8px 12px", button_large_text_size="14px", button_large_text_weight="600",
        button_small_padding="4px 10px", button_small_text_size="12px", button_small_text_weight="500",
        slider_color="*neutral_500", slider_color_dark="*neutral_400",
        link_text_color="*primary_700", link_text_color_dark="*primary_300", layout_gap="8px",
    )  # fmt: skip
