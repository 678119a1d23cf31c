"""Who may be told what over which wire."""

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest

from ledger.client import (
    AsyncLedgerClient,
    LedgerClient,
    PermissionDenied,
    Tls,
    Unauthenticated,
    Unreachable,
)
from ledger.client.connection import is_loopback
from ledger.config import AccessSettings, ServeSettings, TlsSettings
from ledger.server import serve_until
from ledger.v1 import ledger_pb2 as pb
from ledger.writing import post
from tests.conftest import Database, Run
from tests.ledger.test_client import KINDS, client
from tests.rewards import reward
from tests.serving import free_port

TOKEN = "tell-nobody"


class Listening(grpc.GenericRpcHandler):
    """Answers every call, and keeps what it was told besides the question."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        self.told.append(dict(handler_call_details.invocation_metadata))
        return grpc.unary_unary_rpc_method_handler(self.answer)

    async def answer(self, _request: bytes, _context: Any) -> bytes:
        answer = pb.GetBalanceResponse(balance=pb.Balance(amount=pb.Amount(value="7")))
        return answer.SerializeToString()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Listening, str]]:
    """Such a service on a real socket, and its address."""
    server = grpc.aio.server()
    handler = Listening()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield handler, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def is_answered(ask: Any, **options: Any) -> bool:
    """Whether ``ask`` is answered, rather than that no connection comes about."""
    with contextlib.suppress(Unreachable):
        return (await ask("get_balance", "user-1", "USD", **options)).amount == 7
    return False


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.9.10:1", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("ledger.internal:50051", False),
        ("10.0.0.1:50051", False),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("127.0.0.1.example.org:50051", False),
        ("localhost.example.org:50051", False),
        # An IPv6 address without a port, and not that of this machine.
        ("::1:5051", False),
        ("127.0.0.1:50051,10.0.0.1:50051", False),
        ("ipv4:127.0.0.1:50051,10.0.0.1:50051", False),
        ("dns:///127.0.0.1:50051", False),
        ("127.1:50051", False),
        ("127.0.0.1", False),
        ("localhost", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("kind", [LedgerClient, AsyncLedgerClient])
def test_a_token_goes_in_the_clear_to_this_machine_only(
    kind: type[Any], address: str, is_local: bool
) -> None:
    assert is_loopback(address) is is_local
    if is_local:
        kind(address, token=TOKEN)
        kind(address, tls=False, token=TOKEN)
    else:
        for token in (TOKEN, lambda: TOKEN):
            with pytest.raises(ValueError, match="a token goes over TLS only"):
                kind(address, tls=False, token=token)
    kind(address, tls=False)
    kind(address, tls=True, token=TOKEN)


@KINDS
def test_a_token_goes_with_every_question(run: Run, kind: type[Any]) -> None:
    async def main() -> None:
        tokens = iter(["first", "second"])
        async with listening() as (server, address):
            for token in (None, TOKEN, lambda: next(tokens)):
                async with client(kind, address, token=token) as ask:
                    assert await is_answered(ask)
                    assert await is_answered(ask)
        assert [told.get("authorization") for told in server.told] == [
            None,
            None,
            f"Bearer {TOKEN}",
            f"Bearer {TOKEN}",
            "Bearer first",
            "Bearer second",
        ]
        assert "reward-ledger" in server.told[0]["user-agent"]

    run(main())


@KINDS
@pytest.mark.parametrize("token", ["", "two\nlines", "two words", "ü", "\0"])
def test_a_token_that_cannot_be_sent_is_refused_without_being_told(
    run: Run, kind: type[Any], token: str
) -> None:
    async def main() -> None:
        async with listening() as (server, address), client(kind, address, token=token) as ask:
            with pytest.raises(ValueError, match="the token is not made of") as caught:
                await is_answered(ask)
        assert not token or token not in str(caught.value)
        assert server.told == []

    run(main())


@KINDS
def test_what_goes_in_the_clear_goes_past_every_proxy(
    run: Run, kind: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            proxy.settimeout(0)
            for name in ("grpc_proxy", "https_proxy", "http_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
            for name in ("no_proxy", "no_grpc_proxy"):
                monkeypatch.delenv(name, raising=False)
            async with listening() as (_, address), client(kind, address, token=TOKEN) as ask:
                assert await is_answered(ask, timeout_seconds=2)
            with pytest.raises(BlockingIOError):
                proxy.accept()

    run(main())


# TLS


class Pair(NamedTuple):
    """A private key and the certificate for it."""

    key: bytes
    certificate: bytes


class Certificates(NamedTuple):
    """An authority, and whom it vouches for; and somebody whom it does not."""

    authority: bytes
    server: Pair
    client: Pair
    stranger: Pair


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not here")
    folder = tmp_path_factory.mktemp("certificates")

    def pair(name: str, *options: str) -> Pair:
        key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ]
        command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key)]
        subprocess.run(
            [*command, "-out", str(certificate), *options], check=True, stderr=subprocess.DEVNULL
        )
        return Pair(key.read_bytes(), certificate.read_bytes())

    authority = pair("authority")
    vouched = ["-CA", str(folder / "authority.pem"), "-CAkey", str(folder / "authority.key")]
    here = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"]
    return Certificates(
        authority.certificate,
        pair("server", *vouched, *here),
        pair("client", *vouched, "-addext", "basicConstraints=CA:FALSE"),
        pair("stranger", *here),
    )


def files(folder: Path, **contents: bytes) -> dict[str, str]:
    """The path of each file with this content, for its owner only."""
    paths = {}
    for name, content in contents.items():
        path = folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        paths[name] = str(path)
    return paths


@asynccontextmanager
async def serving_tls(
    database: Database, pair: Pair, folder: Path, **others: bytes
) -> AsyncIterator[str]:
    """The address of the real server, which shows this certificate, and has one reward."""
    async with database.connected() as connection:
        await post(connection, [reward(amount="7")])
    paths = files(folder, key=pair.key, certificate=pair.certificate, **others)
    tls = TlsSettings(paths["certificate"], paths["key"], paths.get("client_authorities"))
    settings = ServeSettings(AccessSettings(tls, paths.get("callers")))
    stop, port = asyncio.Event(), free_port()
    address = f"127.0.0.1:{port}"
    server = asyncio.create_task(
        serve_until(stop, database.url("ledger_reader"), address, settings)
    )
    try:
        async with asyncio.timeout(20):
            while not server.done():
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield address
    finally:
        stop.set()
        await server


@KINDS
def test_a_server_is_believed_when_the_authority_vouches_for_it(
    database: Database, run: Run, kind: type[Any], certificates: Certificates, tmp_path: Path
) -> None:
    async def main() -> None:
        trusting = Tls(certificates.authority)
        async with serving_tls(database, certificates.server, tmp_path) as address:
            # Believed by the authority; by the public ones; asked in the clear.
            for tls, is_believed in ((trusting, True), (True, False), (None, False)):
                async with client(kind, address, tls=tls, timeout_seconds=20) as ask:
                    assert await is_answered(ask) is is_believed, tls
        async with (
            serving_tls(database, certificates.stranger, tmp_path) as address,
            client(kind, address, tls=trusting, timeout_seconds=20) as ask,
        ):
            assert not await is_answered(ask)

    run(main())


CALLERS = f"""
[reporting]
token_sha256 = "{sha256(TOKEN.encode()).hexdigest()}"
scopes = ["balances"]
"""


@KINDS
def test_a_caller_is_known_by_its_token(
    database: Database, run: Run, kind: type[Any], certificates: Certificates, tmp_path: Path
) -> None:
    async def main() -> None:
        tls = Tls(certificates.authority)
        callers = CALLERS.encode()
        pair = certificates.server
        async with serving_tls(database, pair, tmp_path, callers=callers) as address:
            async with client(kind, address, tls=tls, token=TOKEN, timeout_seconds=20) as ask:
                assert await is_answered(ask)
                with pytest.raises(PermissionDenied) as denied:
                    await ask("get_reward", "reward-1")
            assert denied.value.scope == "history"
            for token in (None, "another"):
                async with client(kind, address, tls=tls, token=token, timeout_seconds=20) as ask:
                    with pytest.raises(Unauthenticated):
                        await ask("get_balance", "user-1", "USD")

    run(main())


@KINDS
def test_a_caller_shows_its_own_certificate(
    database: Database, run: Run, kind: type[Any], certificates: Certificates, tmp_path: Path
) -> None:
    async def main() -> None:
        authority = certificates.authority
        pair = certificates.server
        async with serving_tls(database, pair, tmp_path, client_authorities=authority) as address:
            for tls, is_known in (
                (Tls(authority, *certificates.client), True),
                (Tls(authority, *certificates.stranger), False),
                (Tls(authority), False),
            ):
                async with client(kind, address, tls=tls, timeout_seconds=20) as ask:
                    assert await is_answered(ask) is is_known

    run(main())


def test_a_private_key_is_not_shown_and_does_not_come_alone(certificates: Certificates) -> None:
    assert "PRIVATE KEY" not in repr(Tls(certificates.authority, *certificates.client))
    for half in ({"private_key": b"-"}, {"certificate_chain": b"-"}):
        with pytest.raises(ValueError, match="need each other"):
            Tls(certificates.authority, **half)
