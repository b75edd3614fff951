"""The servers: `python -m agentauth web|verifier [OPTIONS]`.

gunicorn with `agentauth/server/web_gunicorn.py` or `verifier_gunicorn.py`. gunicorn itself reads
WEB_CONCURRENCY when it is imported, and ends with a traceback if it is not a number. So our own
reader comes first.
"""

import sys
from importlib import import_module
from typing import Final

_SERVERS: Final = {
    "web": ("web_gunicorn", "agentauth.wsgi"),
    "verifier": ("verifier_gunicorn", "agentauth.server.verifier_application"),
}


def main() -> None:
    """Become the server that the first argument names; the others are gunicorn's.

    Raises SystemExit.
    """
    name, *options = sys.argv[1:] or [""]
    if name not in _SERVERS:
        raise SystemExit("usage: python -m agentauth web|verifier --bind ADDRESS:PORT")
    # Refuses a malformed WEB_CONCURRENCY by name.
    import_module("agentauth.server.gunicorn_settings")
    from gunicorn.app.wsgiapp import run

    configuration, application = _SERVERS[name]
    sys.argv = [
        "gunicorn",
        *("-c", f"python:agentauth.server.{configuration}"),
        *options,
        f"{application}:application",
    ]
    run()


if __name__ == "__main__":
    main()
