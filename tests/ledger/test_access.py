"""Who may ask, over a real socket: TLS, callers, their scopes, and files that change."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ledger.access import Access, is_loopback
from ledger.config import AccessSettings, InvalidSetting, ServeSettings, TlsSettings
from ledger.server import serve_until
from ledger.v1 import ledger_pb2 as pb
from ledger.v1.ledger_pb2_grpc import LedgerServiceStub
from ledger.writing import post
from tests.certificates import Files, credentials, files, issued, replace
from tests.conftest import Database, Run
from tests.ledger.test_server import read_to_the_end, status_of
from tests.rewards import reward
from tests.serving import Refusal, connected, free_port, refusal, serving

SERVICE = "ledger.v1.LedgerService"
REQUEST = pb.GetBalanceRequest(user_id="user-1", currency="USD")
NOT_KNOWN = Refusal("UNAUTHENTICATED", "UNAUTHENTICATED")
NOT_ALLOWED = Refusal("PERMISSION_DENIED", "PERMISSION_DENIED")
SECONDS_MAX = 20


def caller(name: str, *scopes: str, certificate: str = "") -> str:
    """A caller of the file; its token is its name."""
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    known = f'token_sha256 = "{sha256(name.encode()).hexdigest()}"'
    if certificate:
        known = f'certificate = "{certificate}"'
    return f"[{name}]\n{known}\nscopes = [{listed}]\n"


def token(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {name}"),)


CALLERS = "".join(
    [
        caller("balances", "balances"),
        caller("history", "history"),
        caller("totals", "totals"),
        caller("coupons", "history", "codes"),
        caller("codes", "codes"),
    ]
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> Files:
    found = files(tmp_path)
    found.write(authority.issue_cert("127.0.0.1"), authority)
    return found


def settings(
    directory: Path, callers: str | None = CALLERS, tls: TlsSettings | None = None, **more: Any
) -> ServeSettings:
    path = directory / "callers.toml"
    if callers is not None:
        replace(path, callers.encode())
    return ServeSettings(AccessSettings(tls, None if callers is None else str(path)), **more)


@asynccontextmanager
async def books(database: Database) -> AsyncIterator[str]:
    async with database.connected() as connection:
        await post(connection, [reward(code="CODE123")])
    yield database.url("ledger_reader")


async def until(happens: Callable[[], Any]) -> None:
    """Returns when it is true."""
    async with asyncio.timeout(SECONDS_MAX):
        while not await happens():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


# Callers and scopes


def test_each_method_needs_its_scope_before_its_message_is_read(
    database: Database, run: Run, tmp_path: Path
) -> None:
    needed = {
        "GetBalance": "balances",
        "ListBalances": "balances",
        "BatchGetBalances": "balances",
        "ListRewards": "history",
        "GetReward": "history",
        "ListCurrencyTotals": "totals",
        "ListMovements": "totals",
        "GetTrialBalance": "totals",
        "WatchRewards": "watch",
        "ReverseReward": "reverse",
    }
    methods = [m.name for m in pb.DESCRIPTOR.services_by_name["LedgerService"].methods]
    assert set(methods) <= set(needed)

    async def main() -> None:
        async with books(database) as url, serving(url, settings=settings(tmp_path)) as channel:
            for method in methods:
                # Whatever else is wrong with the call, too: no message, or one that is none.
                for message in (b"", b"\xff"):
                    for known in ("balances", "history", "totals", "coupons", "codes"):
                        call = channel.unary_unary(f"/{SERVICE}/{method}")
                        asked = call(message, metadata=token(known), timeout=SECONDS_MAX)
                        if needed[method] == known or (known, method) in {
                            ("coupons", "ListRewards"),
                            ("coupons", "GetReward"),
                        }:
                            assert await status_of(asked) in {"OK", "INVALID_ARGUMENT"}
                        else:
                            assert await refusal(asked) == NOT_ALLOWED
                silent = channel.stream_unary(f"/{SERVICE}/{method}")
                assert await refusal(silent(timeout=SECONDS_MAX)) == NOT_KNOWN
                silent_but_known = silent(timeout=SECONDS_MAX, metadata=token("codes"))
                assert await refusal(silent_but_known) == NOT_ALLOWED

    run(main())


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        token("nobody"),
        token(""),
        (("authorization", "balances"),),
        (("authorization", "Basic balances"),),
        # Which of the two is meant, nobody can know.
        token("balances") * 2,
        token("balances") + token("nobody"),
        (("authorization-bin", b"Bearer balances"),),
    ],
)
def test_who_is_not_known_is_not_answered(
    database: Database, run: Run, tmp_path: Path, metadata: Any
) -> None:
    async def main() -> None:
        async with books(database) as url, serving(url, settings=settings(tmp_path)) as channel:
            ask = LedgerServiceStub(channel).GetBalance
            assert await refusal(ask(REQUEST, metadata=metadata)) == NOT_KNOWN
            assert await refusal(ask(pb.GetBalanceRequest(), metadata=metadata)) == NOT_KNOWN
            answer = await ask(REQUEST, metadata=token("balances"))
            assert answer.balance.amount.value == "400"

    run(main())


def test_who_is_refused_takes_no_place_from_others(
    database: Database, run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        chosen = {"settings": settings(tmp_path), "calls_max": 1, "message_seconds_max": 60}
        async with books(database) as url, serving(url, **chosen) as channel:
            for _ in range(5):
                held = channel.stream_unary(f"/{SERVICE}/GetBalance")()
                assert await refusal(held) == NOT_KNOWN
            answer = await LedgerServiceStub(channel).GetBalance(
                REQUEST, metadata=token("balances")
            )
            assert answer.balance.amount.value == "400"

    run(main())


def test_an_error_names_the_scope_that_is_missing(
    database: Database, run: Run, tmp_path: Path
) -> None:
    from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo
    from google.rpc.status_pb2 import Status

    async def main() -> None:
        async with books(database) as url, serving(url, settings=settings(tmp_path)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await LedgerServiceStub(channel).GetBalance(REQUEST, metadata=token("totals"))
            trailers = dict(caught.value.trailing_metadata())
            status = Status.FromString(trailers["grpc-status-details-bin"])
            info, request = ErrorInfo(), RequestInfo()
            assert status.details[0].Unpack(info)
            assert info.metadata == {"scope": "balances"}
            assert status.details[-1].Unpack(request)
            assert len(request.request_id) == 16

    run(main())


def test_codes_are_for_those_with_their_scope_only(
    database: Database, run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        async with books(database) as url:
            async with serving(url, settings=settings(tmp_path)) as channel:
                service = LedgerServiceStub(channel)
                told = {}
                # Turn by turn: what one may see must not stay for the next.
                for known in ("history", "coupons", "history", "coupons"):
                    one = await service.GetReward(
                        pb.GetRewardRequest(reward_id="reward-1"), metadata=token(known)
                    )
                    page = await service.ListRewards(
                        pb.ListRewardsRequest(user_id="user-1"), metadata=token(known)
                    )
                    told[known] = [one.reward.code, *(each.code for each in page.rewards)]
                    hidden = b"CODE123" not in one.SerializeToString() + page.SerializeToString()
                    assert hidden == (known == "history")
            assert told == {"history": ["", ""], "coupons": ["CODE123", "CODE123"]}
            async with serving(url) as channel:
                one = await LedgerServiceStub(channel).GetReward(
                    pb.GetRewardRequest(reward_id="reward-1")
                )
                assert one.reward.code == "CODE123"

    run(main())


def test_health_and_reflection_ask_nobody_who_they_are(
    database: Database, run: Run, tmp_path: Path, tls: Files, authority: trustme.CA
) -> None:
    async def is_open(channel: grpc.aio.Channel) -> None:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert (await check).status
        for version in ("v1", "v1alpha"):
            call = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            assert (await call.read()).list_services_response.service
            call.cancel()

    async def main() -> None:
        async with books(database) as url:
            async with serving(url, settings=settings(tmp_path)) as channel:
                await is_open(channel)
                assert await refusal(LedgerServiceStub(channel).GetBalance(REQUEST)) == NOT_KNOWN
            # Where TLS itself asks for a certificate, those who have none are asked elsewhere.
            port = free_port()
            mutual = settings(
                tmp_path,
                caller("app", "balances", certificate="app.internal"),
                tls.settings(is_mutual=True),
                health_bind=f"127.0.0.1:{port}",
            )
            known = credentials(authority, authority.issue_cert("app.internal"))
            async with serving(url, settings=mutual, credentials=known) as channel:
                await is_open(channel)
                assert (await LedgerServiceStub(channel).GetBalance(REQUEST)).balance.version
                async with connected(port) as probing:
                    await is_open(probing)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await LedgerServiceStub(probing).GetBalance(REQUEST)
                    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(main())


# TLS


def test_over_tls_a_token_is_believed_and_in_the_clear_nobody_is_heard(
    database: Database, run: Run, tmp_path: Path, tls: Files, authority: trustme.CA
) -> None:
    async def main() -> None:
        port = free_port()
        chosen = settings(tmp_path, tls=tls.settings(is_mutual=False))
        trusting = credentials(authority)
        async with (
            books(database) as url,
            serving(url, port=port, settings=chosen, credentials=trusting) as channel,
        ):
            ask = LedgerServiceStub(channel).GetBalance
            assert (await ask(REQUEST, metadata=token("balances"))).balance.version == 1
            assert await refusal(ask(REQUEST)) == NOT_KNOWN
            for wrong in (None, credentials(trustme.CA())):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(2), connected(port, wrong):
                        pass

    run(main())


def test_a_caller_is_known_by_its_certificate(
    database: Database, run: Run, tmp_path: Path, tls: Files, authority: trustme.CA
) -> None:
    known = "".join(
        [
            caller("app", "balances", certificate="app.internal"),
            caller("mail", "balances", certificate="reporting@house.example"),
            caller("plain", "balances", certificate="plain name"),
            caller("house", "balances", certificate="spiffe://house/app"),
            caller("token", "balances"),
        ]
    )
    without_names = trustme.CA(organization_name="x")

    async def main() -> None:
        port = free_port()
        chosen = settings(tmp_path, known, tls.settings(is_mutual=True))
        stop = asyncio.Event()
        async with books(database) as url:
            server = asyncio.create_task(serve_until(stop, url, f"127.0.0.1:{port}", chosen))
            for certificate, is_known in (
                (authority.issue_cert("app.internal"), True),
                (authority.issue_cert("other.internal", "app.internal"), True),
                (authority.issue_cert("reporting@house.example"), True),
                (authority.issue_cert("app.internal", "reporting@house.example"), False),
                (authority.issue_cert("other.internal"), False),
                (issued(authority, "other", "spiffe://house/app"), True),
                (issued(authority, "plain name"), True),
                # A common name counts only in a certificate that has no other.
                (issued(authority, "plain name", "spiffe://house/another"), False),
            ):
                async with connected(port, credentials(authority, certificate)) as channel:
                    ask = LedgerServiceStub(channel).GetBalance
                    if is_known:
                        assert (await ask(REQUEST)).balance.version == 1
                        # A token decides alone, also when it is wrong.
                        assert await refusal(ask(REQUEST, metadata=token("x"))) == NOT_KNOWN
                    else:
                        assert await refusal(ask(REQUEST)) == NOT_KNOWN
                    answer = await ask(REQUEST, metadata=token("token"))
                    assert answer.balance.version == 1
            # Without a certificate, or with one that nobody here believes, TLS does not begin.
            for stranger in (None, without_names.issue_cert("app.internal")):
                shown = credentials(authority, stranger)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(2), connected(port, shown):
                        pass
            stop.set()
            await server

    run(main())


def shown(port: int, authority: trustme.CA, caller: trustme.LeafCert | None = None) -> str:
    """The serial number of the certificate that a new connection is met with."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if caller is not None:
        caller.configure_cert(context)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        return str((wrapped.getpeercert() or {})["serialNumber"])


def test_new_connections_see_a_new_certificate_and_old_ones_live_on(
    database: Database, run: Run, tmp_path: Path, tls: Files, authority: trustme.CA
) -> None:
    async def main() -> None:
        port = free_port()
        chosen = settings(tmp_path, None, tls.settings(is_mutual=False))
        trusting = credentials(authority)
        async with (
            books(database) as url,
            serving(url, port=port, settings=chosen, credentials=trusting) as channel,
        ):
            # No other connection may take this one's place.
            before = await asyncio.to_thread(shown, port, authority)
            assert await asyncio.to_thread(shown, port, authority) == before
            tls.write(authority.issue_cert("127.0.0.1"), authority)

            async def is_new() -> bool:
                return await asyncio.to_thread(shown, port, authority) != before

            await until(is_new)
            service = LedgerServiceStub(channel)
            assert (await service.GetBalance(REQUEST)).balance.version == 1
            async with connected(port, trusting) as another:
                answer = await LedgerServiceStub(another).GetBalance(REQUEST)
                assert answer.balance.version == 1

    run(main())


def test_a_certificate_without_its_key_changes_nothing(
    database: Database, run: Run, tmp_path: Path, tls: Files, authority: trustme.CA, caplog: Any
) -> None:
    async def main() -> None:
        port = free_port()
        chosen = settings(tmp_path, None, tls.settings(is_mutual=False))
        async with (
            books(database) as url,
            serving(url, port=port, settings=chosen, credentials=credentials(authority)),
        ):
            before = await asyncio.to_thread(shown, port, authority)
            issued = authority.issue_cert("127.0.0.1")
            replace(tls.certificate, issued.cert_chain_pems[0].bytes())

            async def is_said() -> bool:
                return "LEDGER_TLS_CERTIFICATE and LEDGER_TLS_KEY are no" in caplog.text

            await until(is_said)
            assert await asyncio.to_thread(shown, port, authority) == before
            replace(tls.key, issued.private_key_pem.bytes())

            async def is_new() -> bool:
                return await asyncio.to_thread(shown, port, authority) != before

            await until(is_new)

    run(main())
    assert caplog.text.count("LEDGER_TLS_CERTIFICATE and") == 1
    assert "BEGIN" not in caplog.text


def test_other_client_authorities_count_for_new_connections(
    database: Database, run: Run, tmp_path: Path, tls: Files, authority: trustme.CA
) -> None:
    other = trustme.CA()

    async def main() -> None:
        port = free_port()
        chosen = settings(tmp_path, None, tls.settings(is_mutual=True))
        before = credentials(authority, authority.issue_cert("app.internal"))
        after = credentials(authority, other.issue_cert("app.internal"))
        async with (
            books(database) as url,
            serving(url, port=port, settings=chosen, credentials=before) as channel,
        ):
            replace(tls.authorities, other.cert_pem.bytes())
            async with connected(port, after) as another:
                answer = await LedgerServiceStub(another).GetBalance(REQUEST)
                assert answer.balance.version == 1
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2), connected(port, before):
                    pass
            assert (await LedgerServiceStub(channel).GetBalance(REQUEST)).balance.version == 1

    run(main())


def test_callers_come_and_go_while_a_connection_stays(
    database: Database, run: Run, tmp_path: Path, caplog: Any
) -> None:
    async def main() -> None:
        async with books(database) as url, serving(url, settings=settings(tmp_path)) as channel:
            ask = LedgerServiceStub(channel).GetBalance

            async def can(name: str) -> bool:
                status = await status_of(ask(REQUEST, metadata=token(name)))
                assert status in {"OK", "UNAUTHENTICATED"}
                return status == "OK"

            assert await can("balances")
            assert not await can("new")
            settings(tmp_path, CALLERS + "tell-nobody")

            async def is_said() -> bool:
                return "What was said before stays" in caplog.text

            await until(is_said)
            assert await can("balances")
            settings(tmp_path, caller("new", "balances"))
            await until(lambda: can("new"))
            assert not await can("balances")

    run(main())
    assert "tell-nobody" not in caplog.text


# What must not be served


@pytest.mark.parametrize(
    ("bind", "is_so"),
    [
        ("127.0.0.1:1", True),
        ("127.9.8.7:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("0:1", False),
        ("10.0.0.1:1", False),
        ("[::ffff:10.0.0.1]:1", False),
        ("::1", False),
        ("*:1", False),
        ("no.such.host.invalid:1", False),
        ("ipv4:0.0.0.0:1", False),
        ("unix:/tmp/socket:1", False),
        ("dns:///localhost:1", False),
    ],
)
def test_an_address_is_loopback_only_when_nobody_else_can_reach_it(bind: str, is_so: bool) -> None:  # noqa: FBT001
    assert is_loopback(bind) is is_so


@pytest.mark.parametrize("bind", ["0.0.0.0", "[::]", "10.1.2.3"])
@pytest.mark.parametrize(
    ("has_tls", "is_mutual", "has_callers"),
    [(False, False, False), (False, False, True), (True, False, False), (True, True, False)],
)
def test_a_public_address_needs_tls_and_callers(
    run: Run,
    tmp_path: Path,
    tls: Files,
    bind: str,
    has_tls: bool,  # noqa: FBT001
    is_mutual: bool,  # noqa: FBT001
    has_callers: bool,  # noqa: FBT001
) -> None:
    chosen = settings(
        tmp_path,
        CALLERS if has_callers else None,
        tls.settings(is_mutual=is_mutual) if has_tls else None,
    )
    serving = serve_until(asyncio.Event(), "postgresql://", f"{bind}:{free_port()}", chosen)
    with pytest.raises(InvalidSetting, match="LEDGER_BIND is not a loopback address"):
        run(serving)


def test_with_both_a_public_address_is_served(
    database: Database, run: Run, tmp_path: Path, tls: Files, authority: trustme.CA
) -> None:
    async def main() -> None:
        port = free_port()
        chosen = settings(tmp_path, tls=tls.settings(is_mutual=False))
        stop = asyncio.Event()
        async with books(database) as url:
            server = asyncio.create_task(serve_until(stop, url, f"0.0.0.0:{port}", chosen))
            async with connected(port, credentials(authority)) as channel:
                ask = LedgerServiceStub(channel).GetBalance
                assert (await ask(REQUEST, metadata=token("balances"))).balance.version == 1
            stop.set()
            await server

    run(main())


def test_callers_with_certificates_need_somebody_who_vouches_for_them(
    tmp_path: Path, tls: Files
) -> None:
    chosen = settings(
        tmp_path,
        caller("app", "balances", certificate="app.internal"),
        tls.settings(is_mutual=False),
    )
    with pytest.raises(InvalidSetting, match="so LEDGER_TLS_CLIENT_AUTHORITIES is required"):
        Access(chosen.access)


def test_files_that_are_not_what_they_should_be_are_refused(
    tmp_path: Path, tls: Files, authority: trustme.CA
) -> None:
    other = authority.issue_cert("127.0.0.1").private_key_pem.bytes()
    chosen = tls.settings(is_mutual=True)
    good = {path: path.read_bytes() for path in tls}
    for path, content, said in (
        (tls.certificate, b"", "LEDGER_TLS_CERTIFICATE and LEDGER_TLS_KEY are no"),
        (tls.certificate, b"x", "LEDGER_TLS_CERTIFICATE and LEDGER_TLS_KEY are no"),
        (tls.key, b"", "LEDGER_TLS_CERTIFICATE and LEDGER_TLS_KEY are no"),
        (tls.key, other, "LEDGER_TLS_CERTIFICATE and LEDGER_TLS_KEY are no"),
        (tls.authorities, b"", "LEDGER_TLS_CLIENT_AUTHORITIES holds no certificates"),
        (tls.authorities, b"\xff", "LEDGER_TLS_CLIENT_AUTHORITIES holds no certificates"),
        (tls.authorities, other, "LEDGER_TLS_CLIENT_AUTHORITIES holds no certificates"),
    ):
        replace(path, content)
        with pytest.raises(InvalidSetting) as caught:
            Access(AccessSettings(chosen))
        assert str(caught.value).startswith(said)
        assert caught.value.__cause__ is None
        replace(path, good[path])
    Access(AccessSettings(chosen))
    tls.key.chmod(0o622)
    with pytest.raises(InvalidSetting, match="LEDGER_TLS_KEY can be written by others"):
        Access(AccessSettings(chosen))


def test_no_path_shows_in_a_repr(tmp_path: Path, tls: Files) -> None:
    chosen = settings(tmp_path, tls=tls.settings(is_mutual=True))
    assert str(tmp_path) not in repr(chosen)


def test_a_stream_ends_when_its_caller_may_not_have_it_any_more(
    database: Database, run: Run, tmp_path: Path
) -> None:
    stays = caller("stays", "watch")

    async def main() -> None:
        before = stays + "".join(caller(name, "watch") for name in ("gone", "less", "more"))
        chosen = settings(tmp_path, before)
        async with books(database) as url, serving(url, settings=chosen) as channel:
            watch = LedgerServiceStub(channel).WatchRewards
            streams = {
                name: watch(pb.WatchRewardsRequest(), metadata=token(name))
                for name in ("stays", "gone", "less", "more")
            }
            for stream in streams.values():
                await stream.read()
            settings(tmp_path, stays + caller("less", "totals") + caller("more", "watch", "codes"))
            ended = {}
            for name in ("gone", "less", "more"):
                async with asyncio.timeout(SECONDS_MAX):
                    ended[name] = await status_of(read_to_the_end(streams[name]))
            # Whoever may see more now is asked to come back, to be shown it.
            assert ended == {
                "gone": "UNAUTHENTICATED",
                "less": "PERMISSION_DENIED",
                "more": "UNAVAILABLE",
            }
            assert not streams["stays"].done()
            streams["stays"].cancel()

    run(main())


def test_codes_are_watched_by_those_with_their_scope_only(
    database: Database, run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        chosen = settings(tmp_path, caller("a", "watch") + caller("b", "watch", "codes"))
        async with books(database) as url, serving(url, settings=chosen) as channel:
            watch = LedgerServiceStub(channel).WatchRewards
            told = {}
            request = pb.WatchRewardsRequest(from_beginning=True)
            for name in ("a", "b", "a", "b"):
                stream = watch(request, metadata=token(name))
                async with asyncio.timeout(SECONDS_MAX):
                    while not (found := (await stream.read()).rewards):
                        pass
                told[name] = [each.code for each in found]
                stream.cancel()
            assert told == {"a": [""], "b": ["CODE123"]}

    run(main())
