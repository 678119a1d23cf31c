"""The fact that we are told: how it is booked, and what makes it another fact."""

import hashlib
from decimal import Decimal
from typing import Any

import pytest

from ledger.posting import Posting
from ledger.reward import is_posted
from tests.rewards import EXAMPLE, reward


def test_a_reward_debits_its_campaign_and_credits_its_user() -> None:
    assert reward(amount="12.5").posting() == Posting(
        debit_account="campaign:campaign-1",
        credit_account="user:user-1",
        currency="USD",
        amount=Decimal("12.5"),
    )


@pytest.mark.parametrize("missing", ["currency", "reward_amount"])
def test_a_reward_without_money_is_no_posting(missing: str) -> None:
    assert EXAMPLE._replace(**{missing: None}).posting() is None


FINGERPRINTED = {
    "user_id": "user-2",
    "reward_amount": Decimal(401),
    "currency": "EUR",
    "campaign_id": "campaign-2",
    "reward_type": "coins",
    "code": "CODE",
}


@pytest.mark.parametrize(("field", "value"), FINGERPRINTED.items())
def test_what_decides_the_money_changes_the_fingerprint(field: str, value: object) -> None:
    changed = EXAMPLE._replace(**{field: value})
    assert changed.fingerprint() != EXAMPLE.fingerprint()


@pytest.mark.parametrize("field", sorted(set(EXAMPLE._fields) - set(FINGERPRINTED)))
def test_nothing_else_changes_the_fingerprint(field: str) -> None:
    changed: dict[str, Any] = {field: object()}
    assert EXAMPLE._replace(**changed).fingerprint() == EXAMPLE.fingerprint()


def test_the_fingerprint_of_a_fact_stays_the_same_for_ever() -> None:
    """It is kept in the books for years: another digest would make every replay a conflict."""
    told = reward(amount="12.5", code="CODE")
    text = b"user-1\x0012.5\0USD\0campaign-1\0points\0CODE"
    assert told.fingerprint() == hashlib.sha256(text).digest()
    nothing = reward(amount=None, reward_type=None)
    assert nothing.fingerprint() == hashlib.sha256(b"user-1\0\0\0campaign-1\0\0").digest()


def test_a_value_that_moves_to_the_next_field_changes_the_fingerprint() -> None:
    one = reward(reward_type="a", code=None)
    other = reward(reward_type=None, code="a")
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("reward_type", "amount", "posted"),
    [
        ("points", "400", True),
        (None, "0.01", True),
        ("points", "0", False),
        ("points", None, False),
        ("noReward", "400", False),
        ("noReward", None, False),
    ],
)
def test_only_a_positive_amount_of_a_real_reward_is_posted(
    reward_type: str | None, amount: str | None, posted: bool
) -> None:
    assert is_posted(reward_type, None if amount is None else Decimal(amount)) is posted
