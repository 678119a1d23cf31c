"""The ingress, and at one path an answer so large that whoever does not read it gets stuck."""

from typing import Any

from ingress.gunicorn_conf import worker_app

LARGE = b"x" * (8 << 20)


def app() -> Any:
    """What a worker runs."""
    ingress = worker_app()

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/large":
            await ingress(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": LARGE})

    return asgi
