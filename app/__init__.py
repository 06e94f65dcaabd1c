"""The doors for people: the command line (``app.cli``) and the web app (``app.ui``)."""
