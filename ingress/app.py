"""Puts the ingress together; errors become HTTP statuses in one table."""

import json
import logging
import secrets
from collections.abc import Mapping
from random import randint
from typing import Any, NamedTuple

import falcon
from falcon.asgi import App, Request, Response

from ingress import errors as ingress
from ingress.config import IngressSettings, read_settings
from ingress.webhook import Books, CustomerGluWebhook
from ledger import errors as books
from ledger.database import Pool, Role
from ledger.writing import Writer

PATH = "/v1/webhooks/customerglu"
RETRY_AFTER_SECONDS_MAX = 5
"""Drawn anew for each answer, so that what was refused together does not come back together."""

log = logging.getLogger("ingress")


class Problem(NamedTuple):
    """What a caller is told of an error: RFC 9457 with these constant words."""

    status: int
    slug: str
    """The stable name, the last part of the problem's ``type``."""
    title: str


PROBLEMS: dict[type[Exception], Problem] = {
    ingress.TooLarge: Problem(413, "too-large", "The body is over the limit"),
    ingress.Incomplete: Problem(400, "incomplete", "Fewer bytes arrived than were announced"),
    ingress.NotAJsonContentType: Problem(415, "not-json-type", "Only JSON in UTF-8 is read"),
    ingress.NotBelieved: Problem(401, "not-believed", "No token vouches for the delivery"),
    ingress.NotJson: Problem(400, "not-json", "The body is not JSON"),
    ingress.NotAReward: Problem(422, "not-a-reward", "The body is not a reward"),
    books.IdempotencyConflict: Problem(
        409, "conflict", "The rewardId stands in the books with other facts"
    ),
    books.UnknownCurrency: Problem(422, "unknown-currency", "The currency is not registered"),
    books.InvalidAmount: Problem(422, "invalid-amount", "The currency has fewer decimals"),
    books.BrokenRule: Problem(422, "broken-rule", "The reward breaks a rule of the books"),
    books.Unavailable: Problem(503, "unavailable", "The books cannot be reached; send it again"),
    falcon.HTTPNotFound: Problem(404, "not-found", "There is nothing at this path"),
    falcon.HTTPMethodNotAllowed: Problem(405, "method-not-allowed", "Deliveries are POSTed"),
    falcon.HTTPError: Problem(400, "bad-request", "The request is malformed"),
    Exception: Problem(503, "unavailable", "The books cannot be reached; send it again"),
}
"""Every error of every branch; the nearest ancestor decides.

Trouble of ours is never 500: the sender is asked to send it again.
"""


def create_app(settings: IngressSettings, books_: Books) -> App[Request, Response]:
    """The ASGI app that takes deliveries by ``settings`` and posts them into ``books_``."""
    app: App[Request, Response] = App(media_type="application/json")
    app.add_route(PATH, CustomerGluWebhook(settings, books_))
    for error in PROBLEMS:
        app.add_error_handler(error, _tell)
    return app


def from_environment() -> App[Request, Response]:
    """What gunicorn runs: the app with the books of ``DATABASE_URL``, opened in the worker."""
    settings = read_settings()
    pool = Pool(settings.database_url, Role.WRITER, size_max=2)
    writer = Writer(pool)
    app = create_app(settings, writer)
    app.add_middleware(_Lifespan(pool, writer))
    return app


class _Lifespan:
    """Opens the pool when the worker has started, so after the fork; empties and closes it."""

    def __init__(self, pool: Pool, writer: Writer) -> None:
        self._pool = pool
        self._writer = writer

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for the start of a worker."""
        await self._pool.open()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for its end."""
        await self._writer.drain()
        await self._pool.close()


async def _tell(
    _request: Request, response: Response | None, error: Exception, _parameters: dict[str, Any]
) -> None:
    """Answer ``error`` as its row of the table says, without a word of its own text."""
    if response is None:
        return
    problem = next(PROBLEMS[ancestor] for ancestor in type(error).__mro__ if ancestor in PROBLEMS)
    request_id = secrets.token_hex(8)
    told: dict[str, object] = {
        "type": f"urn:reward-ledger:problem:{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "requestId": request_id,
    }
    if isinstance(error, ingress.NotAReward):
        told["detail"] = f"{error.field} {error.reason}".strip()
    response.status = problem.status
    response.content_type = "application/problem+json"
    response.data = json.dumps(told).encode()
    if problem.status == 503:
        response.set_header("Retry-After", str(randint(1, RETRY_AFTER_SECONDS_MAX)))  # noqa: S311
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        response.set_header("Allow", "POST")
    if PROBLEMS.get(Exception) is problem:
        log.error("request %s: %s", request_id, books.where(error))
