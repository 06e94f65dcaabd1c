"""The web app: one tab for each kind of work, on this machine only.

``build`` makes the page, ``launch`` serves it. Gradio and the models are imported when they are needed, not before.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

    from app.ui.models import Model

MAX_FILE_SIZE = "1gb"
CLEAN_EVERY, CLEAN_OLDER_THAN = 60 * 60, 24 * 60 * 60  # seconds; uploads and results that nobody came back for
MAX_WAITING = 64  # jobs in the queue


def build(models: Mapping[str, Model] | None = None) -> gr.Blocks:
    """The page.

    Args:
        models: the models to offer, by name; by default those that the repository carries.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by gradio while it is imported
    import gradio as gr

    from app.ui import look
    from app.ui.compress import CompressTab
    from app.ui.files import Page
    from app.ui.generate import GenerateTab
    from app.ui.models import Shelf, embedded_models
    from app.ui.restore import RestoreTab

    shelf = Shelf(embedded_models() if models is None else models)
    page = Page(title="Genres", analytics_enabled=False, delete_cache=(CLEAN_EVERY, CLEAN_OLDER_THAN), fill_width=False)
    with page:
        gr.HTML(look.HEADER, padding=False, elem_id="header")
        with gr.Tab("Restore"):
            RestoreTab(shelf.part(lambda model: "generate" not in model.tasks), page)
        with gr.Tab("Compress"):
            CompressTab(shelf)
        if shelf.choices("generate"):
            with gr.Tab("Generate"):
                GenerateTab(shelf.part(lambda model: "generate" in model.tasks), page)
    page.queue(max_size=MAX_WAITING)
    return page


def launch(
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    open_browser: bool = True,
    *,
    models: Mapping[str, Model] | None = None,
    wait: bool = True,
) -> gr.Blocks:
    """Serves the page until it is interrupted.

    Args:
        host: address to listen on; whoever can reach it can use the app.
        port: port to listen on.
        share: also open a public address through gradio's servers; needs ``auth``.
        auth: user name and password that visitors must give.
        open_browser: show the page in the default browser.
        models: see ``build``.
        wait: return only when the server ends; False returns at once, ``close()`` of the page ends the server.

    Raises:
        ValueError: the app would be open to the world without a password, or cannot listen there.
    """
    from genres.runtime import share_memory_between_threads

    if share and not auth:
        raise ValueError("A public address needs a password: give a user name and a password, or leave out share.")
    page = build(models)
    share_memory_between_threads()
    try:
        _, address, public = page.launch(
            server_name=host, server_port=port, share=share, auth=auth, inbrowser=open_browser, **_options()
        )
    except OSError as error:
        raise ValueError(f"The web app cannot listen on {host}, port {port}: choose another port.") from error
    print(f"Genres is at {public or address}")
    if not _is_this_machine(host):
        print(f"Everybody who reaches {host}:{port} can use this app{'' if auth else ', and no password is asked'}.")
    if wait:
        page.block_thread()
    return page


def _options() -> dict[str, Any]:
    from app.ui import look

    return {
        "theme": look.theme(),
        "css": look.CSS,
        "head": look.HEAD,
        "footer_links": ["settings"],
        "max_file_size": MAX_FILE_SIZE,
        "strict_cors": True,
        "enable_monitoring": False,
        "run_history": False,
        "mcp_server": False,
        "ssr_mode": False,
        "prevent_thread_lock": True,
        "quiet": True,
    }


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
