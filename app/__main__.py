"""``python -m app`` is the same as ``genres``."""

from app.cli.main import main

if __name__ == "__main__":
    main()
