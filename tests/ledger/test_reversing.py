"""Taking back over gRPC: who may, what it answers, and that it is posted once whatever breaks."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from ledger.client import errors as told
from ledger.config import AccessSettings, ServeSettings
from ledger.database import Role
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from tests.conftest import SUPERUSER, Database, Run
from tests.corrections import adjusted
from tests.ledger.test_client import KINDS, client
from tests.rewards import reward
from tests.serving import Refusal, free_port, refusal, serving
from tests.verifying import verify
from tests.watches import posted
from tests.wire import Loss, Wire

SECONDS_MAX = 30
NAMES = ("ann", "bob")
CALLERS = "".join(
    f'[{name}]\ntoken_sha256 = "{sha256(name.encode()).hexdigest()}"\n'
    'scopes = ["reverse", "history", "balances"]\n'
    for name in NAMES
)


def settings(directory: Path, *, corrects: bool = True) -> ServeSettings:
    path = directory / "callers.toml"
    path.write_text(CALLERS)
    return ServeSettings(AccessSettings(None, str(path)), corrects=corrects)


def token(name: str = "ann") -> Any:
    return (("authorization", f"Bearer {name}"),)


def asked(**fields: Any) -> pb.ReverseRewardRequest:
    usual = {"reward_id": "reward-1", "key": "key-1", "reason": "a mistake"}
    return pb.ReverseRewardRequest(**{**usual, **fields})


class Service:
    """A service that corrects, and who asks it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._calls = LedgerServiceStub(channel)

    async def reverse(
        self, caller: str = "ann", seconds_max: float = SECONDS_MAX, **fields: Any
    ) -> pb.Correction:
        request = asked(**fields)
        call = self._calls.ReverseReward(request, metadata=token(caller), timeout=seconds_max)
        return (await call).correction

    async def reward(self, reward_id: str = "reward-1") -> pb.Reward:
        request = pb.GetRewardRequest(reward_id=reward_id)
        return (await self._calls.GetReward(request, metadata=token())).reward

    async def balance(self, user_id: str = "user-1") -> pb.Balance:
        request = pb.GetBalanceRequest(user_id=user_id, currency="USD")
        return (await self._calls.GetBalance(request, metadata=token())).balance


@asynccontextmanager
async def correcting(
    database: Database, directory: Path, url: str = "", **options: Any
) -> AsyncIterator[Service]:
    url = url or database.url(Role.CORRECTOR)
    async with serving(url, settings=settings(directory), **options) as channel:
        yield Service(channel)


async def hold(database: Database) -> None:
    assert await verify(database.url()) == []


def test_what_was_taken_back_is_answered_as_it_stands_in_the_books(
    database: Database, run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        await posted(database, reward(), reward("other", "1.5"))
        async with correcting(database, tmp_path) as service:
            assert not (await service.reward()).HasField("reversed")
            part = await service.reverse(amount="100.5", key="part")
            assert (part.key, part.reward_id, part.user_id) == ("part", "reward-1", "user-1")
            assert part.kind == pb.CORRECTION_KIND_REVERSAL
            assert (part.reason, part.actor, part.approver) == ("a mistake", "ann", "")
            booked = part.posting
            assert booked.debit_account == "user:user-1"
            assert booked.credit_account == "campaign:campaign-1"
            assert booked.amount == pb.Amount(currency="USD", value="100.50")
            assert booked.balance_after == pb.Amount(currency="USD", value="301")
            assert booked.version == 3
            found = await service.reward()
            assert found.reversed == booked.amount
            assert found.posting.amount.value == "400"
            assert (await service.balance()).posted_at == booked.posted_at
            # Whoever asks again, in whatever words, gets what stands there.
            again = await service.reverse("bob", amount="100.50", key="part", reason="again")
            assert again == part
            rest = await service.reverse("bob", key="rest")
            assert (rest.actor, rest.posting.amount.value) == ("bob", "299.50")
            assert (await service.reward()).reversed.value == "400"
            assert (await service.balance()).amount.value == "1.50"
            assert not (await service.reward("other")).HasField("reversed")
        await hold(database)

    run(main())
    assert database.rows("SELECT actor, login FROM corrections ORDER BY number") == [
        ("ann", "ledger_corrector"),
        ("bob", "ledger_corrector"),
    ]


def of(status: str, reason: str) -> Refusal:
    return Refusal(status, reason)


def malformed(field: str) -> Refusal:
    return Refusal("INVALID_ARGUMENT", "INVALID_ARGUMENT", field)


REFUSED: list[tuple[dict[str, Any], Refusal]] = [
    ({"reward_id": ""}, malformed("reward_id")),
    ({"reward_id": "r" * 201}, malformed("reward_id")),
    ({"key": ""}, malformed("key")),
    ({"key": "k\0"}, malformed("key")),
    ({"reason": ""}, malformed("reason")),
    ({"reason": " \n"}, malformed("reason")),
    ({"reason": "a\0b"}, malformed("reason")),
    ({"reason": "r" * 1001}, malformed("reason")),
    *(
        ({"amount": amount}, malformed("amount"))
        for amount in ("0", "-1", "1.001", "1e2", "NaN", "Infinity", " 1", "²", "9" * 31, "1,5")
    ),
    ({"reward_id": "unknown"}, of("NOT_FOUND", "REWARD_NOT_FOUND")),
    ({"reward_id": "recorded"}, of("FAILED_PRECONDITION", "NOTHING_TO_REVERSE")),
    ({"reward_id": "gone"}, of("FAILED_PRECONDITION", "NOTHING_TO_REVERSE")),
    ({"amount": "400.01"}, of("FAILED_PRECONDITION", "TOO_MUCH_TO_REVERSE")),
    ({"reward_id": "spent"}, of("FAILED_PRECONDITION", "BALANCE_TOO_LOW")),
    ({"key": "taken"}, of("ALREADY_EXISTS", "KEY_CONFLICT")),
    ({"key": "taken", "reward_id": "gone", "amount": "6"}, of("ALREADY_EXISTS", "KEY_CONFLICT")),
]


def test_what_cannot_be_taken_back_is_refused_with_its_reason_and_posts_nothing(
    database: Database, run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        await posted(
            database,
            *(reward(), reward("recorded", None), reward("gone", "7")),
            reward("spent", "50", user_id="user-2"),
        )
        await adjusted(database, "spent", "-30", user_id="user-2")
        async with correcting(database, tmp_path) as service:
            await service.reverse(reward_id="gone", key="taken")
            before = database.rows("SELECT count(*) FROM postings")
            for fields, expected in REFUSED:
                assert await refusal(service.reverse(**fields)) == expected, fields
            assert database.rows("SELECT count(*) FROM postings") == before
            below = await service.reverse(reward_id="spent", allow_negative=True)
            assert (below.posting.amount.value, below.posting.balance_after.value) == ("50", "-30")
            assert (await service.balance("user-2")).amount.value == "-30"
        await hold(database)

    run(main())


def test_a_service_that_was_not_set_up_to_correct_does_not_and_has_no_connection_for_it(
    database: Database, run: Run, tmp_path: Path
) -> None:
    looked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ledger_corrector'"
    looked += f" AND datname = '{database.name}'"

    async def main() -> None:
        await posted(database, reward())
        url = database.url(Role.READER)
        async with serving(url, settings=settings(tmp_path, corrects=False)) as channel:
            off = of("UNIMPLEMENTED", "CORRECTIONS_OFF")
            assert await refusal(Service(channel).reverse()) == off
            assert database.rows(looked) == [(0,)]
        # Where nobody says who they are, nobody corrects, whatever it was set up for.
        for corrects in (False, True):
            url = database.url(Role.CORRECTOR)
            async with serving(url, settings=ServeSettings(corrects=corrects)) as channel:
                denied = of("PERMISSION_DENIED", "PERMISSION_DENIED")
                call = LedgerServiceStub(channel).ReverseReward(asked())
                assert await refusal(call) == denied
        async with correcting(database, tmp_path) as service:
            await service.reverse()
            assert database.rows(looked) != [(0,)]

    run(main())


def test_however_many_reverse_at_once_and_whatever_is_killed_each_key_is_posted_once(
    database: Database, run: Run, tmp_path: Path, chance: random.Random
) -> None:
    kill = f"""
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'ledger_corrector' AND datname = '{database.name}'
    """
    amounts = {f"key-{n}": Decimal(chance.randint(1, 60)) for n in range(24)}

    async def main() -> None:
        await posted(database, reward())
        answers: dict[str, set[Decimal]] = {key: set() for key in amounts}

        async def reverse(service: Service, key: str) -> None:
            """Ask until it is known what became of it."""
            async with asyncio.timeout(SECONDS_MAX):
                while True:
                    try:
                        found = await service.reverse(key=key, amount=str(amounts[key]))
                    except grpc.aio.AioRpcError as error:
                        if error.code().name == "FAILED_PRECONDITION":
                            return
                        if error.code().name not in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}:
                            raise
                        await asyncio.sleep(chance.random() / 10)
                    else:
                        answers[key].add(Decimal(found.posting.amount.value))
                        return

        async def kill_now_and_then() -> None:
            with psycopg.connect(database.url(SUPERUSER), autocommit=True) as connection:
                while True:
                    await asyncio.sleep(chance.random() / 10)
                    connection.execute(kill)  # type: ignore[arg-type]

        async with correcting(database, tmp_path) as service:
            killing = asyncio.create_task(kill_now_and_then())
            twice = [*amounts, *amounts]
            chance.shuffle(twice)
            await asyncio.gather(*(reverse(service, key) for key in twice))
            killing.cancel()
            with suppress(asyncio.CancelledError):
                await killing
            left = 400 - sum(sum(each) for each in answers.values())
            assert (await service.balance()).amount.value == str(left)
        for key, found in answers.items():
            assert found <= {amounts[key]}
        kept = dict(database.rows("SELECT correction_key, amount FROM corrections"))
        assert kept == {key: amounts[key] for key, found in answers.items() if found}
        # Nothing was refused that would have had room.
        assert all(amounts[key] > left for key, found in answers.items() if not found)
        await hold(database)

    run(main())


def test_a_commit_of_which_nobody_heard_is_asked_for_again_and_posted_once(
    database: Database, run: Run, tmp_path: Path
) -> None:
    given = conninfo_to_dict(database.url(SUPERUSER))
    socket = Path(str(given["host"])) / f".s.PGSQL.{given['port']}"

    async def main(wire: Wire) -> None:
        await posted(database, reward())
        url = f"postgresql://{Role.CORRECTOR}@127.0.0.1:{wire.port}/{database.name}"
        async with correcting(database, tmp_path, url) as service:
            for number, loss in enumerate(Loss, start=1):
                await asyncio.to_thread(wire.lose, loss)
                found = await service.reverse(key=f"key-{number}", amount="10")
                assert wire.to_lose() == 0
                assert (found.key, found.posting.version) == (f"key-{number}", number + 1)
            assert (await service.balance()).amount.value == "370"
        await hold(database)

    with Wire(socket, writes=b"COMMIT\0") as wire:
        run(main(wire))


def test_whoever_did_not_wait_for_the_answer_asks_again_under_the_same_key(
    database: Database, run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        await posted(database, reward())
        async with correcting(database, tmp_path) as service:
            with psycopg.connect(database.url()) as connection:
                connection.execute("SELECT FROM balances FOR UPDATE")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await service.reverse(seconds_max=0.3)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert (await service.reverse()).posting.version == 2
            assert (await service.balance()).version == 2
        await hold(database)

    run(main())


@KINDS
def test_a_client_takes_back_and_raises_what_was_refused(
    database: Database, run: Run, tmp_path: Path, kind: type[Any]
) -> None:
    async def main() -> None:
        await posted(database, reward(), reward("later", "1", user_id="user-2"))
        await adjusted(database, "spent", "-2", user_id="user-2")
        port = free_port()
        async with (
            correcting(database, tmp_path, port=port),
            client(kind, f"127.0.0.1:{port}", token="ann") as ask,
        ):
            part = await ask(
                "reverse_reward", "reward-1", amount=Decimal("1E+2"), key="a", reason="x"
            )
            assert (part.kind, part.reward_id, part.actor) == ("reversal", "reward-1", "ann")
            assert (part.posting.amount, part.posting.balance_after) == (100, 300)
            assert (await ask("get_reward", "reward-1")).reversed == 100
            with pytest.raises(told.TooMuchToReverse) as too_much:
                await ask("reverse_reward", "reward-1", amount=301, key="b", reason="x")
            assert too_much.value.left == 300
            with pytest.raises(told.BalanceTooLow) as too_low:
                await ask("reverse_reward", "later", key="b", reason="x")
            assert too_low.value.balance == -2
            with pytest.raises(told.KeyConflict):
                await ask("reverse_reward", "later", key="a", reason="x")
            with pytest.raises(told.RewardNotFound):
                await ask("reverse_reward", "unknown", key="b", reason="x")
            with pytest.raises(told.InvalidArgument) as invalid:
                await ask("reverse_reward", "reward-1", key="b", reason="")
            assert invalid.value.field == "reason"

    run(main())
