"""Page tokens: where a history goes on, for the filter that they were made for."""

from datetime import UTC, datetime

import pytest

from ledger import page
from ledger.errors import InvalidArgument
from ledger.history import RewardFilter
from ledger.seal import BrokenSeal, Seal

AT = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
SEAL = Seal(bytes(range(32)))
CHOSEN = RewardFilter("user-1", "USD", "campaign-1", "scratchcard", AT, AT)


def refused(page_token: str, chosen: RewardFilter = CHOSEN) -> bool:
    with pytest.raises(InvalidArgument) as caught:
        page.start(SEAL, page_token, chosen)
    return caught.value.field == "page_token"


@pytest.mark.parametrize("number", [1, 2**40, 2**63 - 1])
def test_a_page_starts_where_its_token_was_made(number: int) -> None:
    assert page.start(SEAL, page.token(SEAL, number, CHOSEN), CHOSEN) == number


def test_the_first_page_starts_above_every_number() -> None:
    assert page.start(SEAL, "", CHOSEN) == 2**63 - 1


@pytest.mark.parametrize(
    "other",
    [
        CHOSEN._replace(user_id="user-2"),
        CHOSEN._replace(currency="EUR"),
        CHOSEN._replace(currency=None),
        CHOSEN._replace(campaign_id="campaign-2"),
        CHOSEN._replace(type="quiz"),
        CHOSEN._replace(start_time=None),
        CHOSEN._replace(end_time=datetime(2026, 11, 23, 12, 31, tzinfo=UTC)),
        # The same words in other places are another filter.
        CHOSEN._replace(campaign_id="scratchcard", type="campaign-1"),
    ],
)
def test_a_token_of_another_filter_is_refused(other: RewardFilter) -> None:
    assert refused(page.token(SEAL, 7, CHOSEN), other)


@pytest.mark.parametrize(
    "page_token", ["AAAA", "A", "=", " ", "ä", "\0", "A" * 32, "A" * 10_000, "AAAA\nAAAA"]
)
def test_what_is_no_token_is_refused(page_token: str) -> None:
    assert refused(page_token)


def test_a_token_with_any_character_changed_is_refused() -> None:
    page_token = page.token(SEAL, 7, CHOSEN)
    for place, character in enumerate(page_token):
        other = "B" if character == "A" else "A"
        assert refused(page_token[:place] + other + page_token[place + 1 :])


@pytest.mark.parametrize("added", ["!", " ", "\n", "ä", "A", "="])
def test_a_token_with_a_character_added_is_refused(added: str) -> None:
    page_token = page.token(SEAL, 7, CHOSEN)
    for place in range(len(page_token) + 1):
        assert refused(page_token[:place] + added + page_token[place:])


def test_a_token_is_safe_in_an_address() -> None:
    for number in range(200):
        assert page.token(SEAL, number, CHOSEN).replace("-", "").replace("_", "").isalnum()


def test_a_token_of_other_books_is_refused() -> None:
    assert refused(page.token(Seal(bytes(32)), 7, CHOSEN))


@pytest.mark.parametrize("payload", [b"", b"\0", b"reward-1" * 10])
def test_what_is_sealed_opens_for_its_purpose_only(payload: bytes) -> None:
    token = SEAL.close(b"a page", payload)
    assert SEAL.open(b"a page", token) == payload
    for purpose in (b"", b"a pag", b"a page\0", b"a page" + payload[:1] + b"x"):
        with pytest.raises(BrokenSeal):
            SEAL.open(purpose, token)
