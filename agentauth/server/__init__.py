"""The HTTP servers: gunicorn with workers of our own that hand over whole requests.

`gunicorn_settings` holds the settings of both servers: `web_gunicorn` (threads: `thread_worker`)
and `verifier_gunicorn` (an event loop: `loop_worker`, for `verifier_application`).
`request_framing` collects a request, `asgi_exchange` carries it and its answer, and
`connection_balancing` chooses the worker process that accepts. ADR 10 and ADR 12 say why.
"""
