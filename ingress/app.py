"""Puts the ingress together; errors become HTTP statuses in one table."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from random import randint
from typing import Any, NamedTuple

import falcon
from falcon.asgi import Request, Response

from ingress import errors as ingress
from ingress import observing
from ingress.config import IngressSettings, read_settings
from ingress.draining import Keep
from ingress.health import Live, Ready, can_post
from ingress.keeping import Keeper, unposted
from ingress.mapping import Mapping as IngressMapping
from ingress.observation import observation
from ingress.payload import read_reward
from ingress.receiving import DeliveryApp
from ingress.sharing import LOOK_EVERY_SECONDS, Sharing
from ingress.spool import Delivery, Spool
from ingress.spooling import SpoolingBooks, SpoolingQuarantine
from ingress.tallying import WRITE_EVERY_SECONDS, CountingKeeper, Counts, Tallying
from ingress.watching import Watching
from ingress.webhook import Books, CustomerGluWebhook
from ledger import errors as books
from ledger.database import Pool, Role
from ledger.quarantine import Quarantine
from ledger.reward import Reward
from ledger.writing import WAIT_SECONDS_MAX, ObserveBatch, Outcome, Writer

PATH = "/v1/webhooks/customerglu"
POSTING_POOL_SIZE_MAX = 2
"""One connection that posts, and one that keeps what cannot be posted."""
LOOKING_POOL_SIZE_MAX = 2
"""For the probe and for what counts and looks: whoever waits there for a slow Postgres keeps no
connection from a reward."""
SPOOL_AFTER_SECONDS = 1.5
"""How long the books may take before a delivery is spooled: there must be time left for that."""
RETRY_AFTER_SECONDS_MAX = 5
"""Drawn anew for each answer, so that what was refused together does not come back together."""

log = logging.getLogger("ingress")


class Problem(NamedTuple):
    """What a caller is told of an error: RFC 9457 with these constant words."""

    status: int
    slug: str
    """The stable name, the last part of the problem's ``type``."""
    title: str


_NOT_BELIEVED = Problem(401, "not-believed", "No token vouches for the delivery")
_UNAVAILABLE = Problem(503, "unavailable", "The books cannot be reached; send it again")

PROBLEMS: dict[type[Exception], Problem] = {
    ingress.TooLarge: Problem(413, "too-large", "The body is over the limit"),
    ingress.Incomplete: Problem(400, "incomplete", "Fewer bytes arrived than were announced"),
    ingress.NotAJsonContentType: Problem(415, "not-json-type", "Only JSON in UTF-8 is read"),
    ingress.AddressNotAllowed: Problem(403, "address-not-allowed", "Not from this address"),
    ingress.NotBelieved: _NOT_BELIEVED,
    ingress.TooManyFailures: Problem(429, "too-many-failures", "No token vouched for too many"),
    ingress.NotCheckedInTime: Problem(
        503, "not-checked", "Its signature could not be checked in time; send it again"
    ),
    ingress.NotCanonical: _NOT_BELIEVED,
    ingress.NotJson: Problem(400, "not-json", "The body is not JSON"),
    ingress.NotAReward: Problem(422, "not-a-reward", "The body is not a reward"),
    books.IdempotencyConflict: Problem(
        409, "conflict", "The rewardId stands in the books with other facts"
    ),
    books.UnknownCurrency: Problem(422, "unknown-currency", "The currency is not registered"),
    books.InvalidAmount: Problem(422, "invalid-amount", "The currency has fewer decimals"),
    books.BrokenRule: Problem(422, "broken-rule", "The reward breaks a rule of the books"),
    books.Refused: Problem(422, "refused", "The books refuse the reward"),
    books.Unavailable: _UNAVAILABLE,
    falcon.HTTPNotFound: Problem(404, "not-found", "There is nothing at this path"),
    falcon.HTTPMethodNotAllowed: Problem(
        405, "method-not-allowed", "This method is not for this path"
    ),
    falcon.HTTPError: Problem(400, "bad-request", "The request is malformed"),
    Exception: _UNAVAILABLE,
}
"""An answer for every error; the nearest ancestor decides.

Trouble of ours is never 500: the sender is asked to send it again.
"""


def create_app(settings: IngressSettings, books_: Books, quarantine: Keeper) -> DeliveryApp:
    """The ASGI app that takes deliveries by ``settings`` and posts them into ``books_``.

    What is believed and cannot be posted goes to ``quarantine``.
    """
    app = DeliveryApp(media_type="application/json")
    app.add_route(PATH, CustomerGluWebhook(settings, books_, quarantine))
    for error in PROBLEMS:
        app.add_error_handler(error, _tell)
    return app


def from_environment(settings: IngressSettings | None = None) -> DeliveryApp:
    """The app with the books of ``DATABASE_URL``, opened in the worker.

    ``settings`` are those that gunicorn's master has read, or the environment's.
    """
    settings = settings or read_settings()
    posting = Pool(settings.database_url, Role.WRITER, size_max=POSTING_POOL_SIZE_MAX)
    looking = Pool(settings.database_url, Role.WRITER, size_max=LOOKING_POOL_SIZE_MAX)
    metrics, observer = observing.from_environment({row.slug for row in PROBLEMS.values()})
    watching = Watching(metrics, looking, (posting, looking))
    tallying = Tallying(looking, metrics.counts)
    sharing = Sharing(looking, observer.shares_transaction)
    quarantine = Quarantine(posting)
    counted = CountingKeeper(quarantine, metrics.counts)
    has_spool = settings.spool is not None
    writer = Writer(
        posting,
        wait_seconds_max=SPOOL_AFTER_SECONDS if has_spool else WAIT_SECONDS_MAX,
        observe_batch=_each_of(watching.posted, sharing.posted),
    )
    spooling = _spooling(settings, looking, writer, counted, metrics.counts)
    keeper = counted if spooling is None else SpoolingQuarantine(counted, spooling)
    app = create_app(settings, spooling or writer, keeper)
    app.add_route("/livez", Live())
    app.add_route(
        "/readyz",
        Ready(partial(can_post, looking), lambda: spooling is not None and spooling.can_spool),
    )
    watching.begin(spooling)
    metrics.watch(tallying.write, WRITE_EVERY_SECONDS)
    metrics.watch(sharing.look, LOOK_EVERY_SECONDS)
    endings = (sharing.end, tallying.end)
    lifespan = _Lifespan((posting, looking), writer, quarantine, spooling, endings)
    # Shut down from the last to the first: what is still posted is still told and counted.
    app.add_middleware([metrics, observer, lifespan])
    return app


def _each_of(*observers: ObserveBatch) -> ObserveBatch:
    def observe(rewards: Sequence[Reward], outcomes: Sequence[Outcome]) -> None:
        for each in observers:
            each(rewards, outcomes)

    return observe


def _spooling(
    settings: IngressSettings, looking: Pool, writer: Writer, quarantine: Keeper, counts: Counts
) -> SpoolingBooks | None:
    if settings.spool is None:
        return None
    read = partial(read_reward, mapping=settings.mapping)
    spool = Spool(settings.spool.directory, settings.spool.size_max_bytes)
    keep = keep_spooled(quarantine, settings.mapping)
    return SpoolingBooks(writer, looking, spool, read, keep, counts.drain)


def keep_spooled(quarantine: Keeper, mapping: IngressMapping) -> Keep:
    """What is done with a spooled delivery that the books refuse later: ``quarantine`` keeps it.

    ``mapping`` is the one by which it was read.
    """

    async def keep(delivery: Delivery, error: Exception) -> None:
        is_conflict = isinstance(error, books.IdempotencyConflict)
        reward = read_reward(delivery.text, mapping) if is_conflict else None
        await quarantine.keep(
            unposted(
                delivery.text,
                error,
                reward_id=reward.reward_id if reward else None,
                token=delivery.token,
                form=delivery.form,
                read_under=mapping.digest,
            )
        )

    return keep


class _Lifespan:
    """Opens the pools when the worker has started, so after the fork; empties and closes them.

    ``endings`` are awaited in between, when nothing more is posted.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        writer: Writer,
        quarantine: Quarantine,
        spooling: SpoolingBooks | None,
        endings: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self._pools = pools
        self._writer = writer
        self._quarantine = quarantine
        self._spooling = spooling
        self._endings = endings

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for the start of a worker."""
        for pool in self._pools:
            await pool.open()
        if self._spooling is not None:
            await self._spooling.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Falcon's hook for its end."""
        if self._spooling is not None:
            await self._spooling.stop()
        await self._writer.drain()
        await self._quarantine.drain()
        await asyncio.gather(*(end() for end in self._endings))
        for pool in self._pools:
            await pool.close()


async def _tell(
    request: Request, response: Response | None, error: Exception, _parameters: dict[str, Any]
) -> None:
    """Answer ``error`` as its row of the table says, without a word of its own text."""
    if response is None:
        return
    ancestor = next(kind for kind in type(error).__mro__ if kind in PROBLEMS)
    problem = PROBLEMS[ancestor]
    seen = observation(request)
    seen.outcome = problem.slug
    told: dict[str, object] = {
        "type": f"urn:reward-ledger:problem:{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "requestId": seen.request_id,
    }
    if isinstance(error, ingress.NotAReward):
        told["detail"] = f"{error.field} {error.reason}".strip()
    response.status = problem.status
    response.content_type = "application/problem+json"
    response.data = json.dumps(told).encode()
    if problem.status == 503:
        response.set_header("Retry-After", str(randint(1, RETRY_AFTER_SECONDS_MAX)))  # noqa: S311
    if isinstance(error, ingress.TooManyFailures):
        response.set_header("Retry-After", str(error.wait_seconds))
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        allowed = dict(error.headers or {})["Allow"].removesuffix(", OPTIONS")
        response.set_header("Allow", allowed)
    if ancestor is Exception:
        log.error("request %s: %s", seen.request_id, books.where(error))
