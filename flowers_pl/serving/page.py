"""The page for people, by Gradio: pictures in, classes with their probabilities, heat map and table out.

Gradio's own uploads would be kept on the disk, and its events let a client name files of the server. So the
page has no event that runs on the server: a script in it asks the service, as any other program does, and
fills Gradio's components. `guard` closes all of Gradio's routes that do more than send the page.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI

from flowers_pl.serving.guard import RequestLimits

FONTS = ("system-ui", "sans-serif")  # those of the visitor's machine: Gradio's default loads some from Google
PROBABILITIES = "(shown) => shown && shown.confidences ? shown : null"
STRENGTH = "(strength) => { document.documentElement.style.setProperty('--strength', strength); }"


def add_page(app: FastAPI, limits: RequestLimits) -> FastAPI:
    """Add the page to the service, at `/`.

    Args:
        app: the service.
        limits: the page sends no more pictures and bytes in a request.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio as gr

    script = _text("page.js")
    for name, most in (("MAX_FILES", limits.max_files), ("MAX_BYTES", limits.max_bytes)):
        script = script.replace(f"${name}", str(most))
    with gr.Blocks(title="flowers_pl", analytics_enabled=False) as page:
        with gr.Row():
            with gr.Column(scale=3):
                pictures = gr.HTML(
                    html_template=_text("page.html"),
                    js_on_load=script,
                    apply_default_css=False,
                    elem_id="pictures",
                )
            with gr.Column(scale=2):
                shares = gr.Label(label="Probabilities", num_top_classes=10, elem_id="probabilities")
                strength = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Strength of the heat map", elem_id="strength"
                )
        gr.HTML(html_template=_text("table.html"), apply_default_css=False)
        pictures.change(fn=None, inputs=[pictures], outputs=[shares], js=PROBABILITIES)
        strength.change(fn=None, inputs=[strength], js=STRENGTH)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        css=_text("page.css"),
        theme=gr.themes.Soft(primary_hue="green", font=FONTS, font_mono=("monospace",)),
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        mcp_server=False,
        show_error=False,
    )


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
