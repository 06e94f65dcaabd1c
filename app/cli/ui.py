"""``genres ui``: the web app."""

from typing import Annotated

import typer


def ui(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 is reached from this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Also open a public address through gradio's servers; needs --auth.")
    ] = False,
    auth: Annotated[
        str | None, typer.Option(metavar="USER:PASSWORD", help="Ask visitors for this name and password.")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page in a browser.")] = False,
) -> None:
    """Open the web app.

    It serves this machine only, unless --host or --share says otherwise; images stay on this machine.
    """
    login = _login(auth)
    if share and login is None:
        raise typer.BadParameter("a public address needs a password; add --auth USER:PASSWORD.", param_hint="--share")
    from app.ui import launch

    launch(host=host, port=port, share=share, auth=login, open_browser=not no_browser)


def _login(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, _, password = text.partition(":")
    if not user or not password:
        raise typer.BadParameter("write it as USER:PASSWORD.", param_hint="--auth")
    return user, password
