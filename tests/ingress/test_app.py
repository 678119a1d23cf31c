"""Every error has an answer, and the answer is the table's."""

import falcon
import pytest

from ingress import errors as ingress
from ingress.app import PROBLEMS
from ledger import errors as books


def leaves(root: type[Exception]) -> list[type[Exception]]:
    """The classes under ``root`` that nothing else derives from."""
    children = root.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [root]


def answer(error: type[Exception]) -> tuple[int, str]:
    ancestor = next(kind for kind in error.__mro__ if kind in PROBLEMS)
    assert ancestor is not Exception, f"nobody has thought of {error}"
    return PROBLEMS[ancestor].status, PROBLEMS[ancestor].slug


@pytest.mark.parametrize("leaf", leaves(ingress.IngressError))
def test_every_error_of_the_ingress_has_an_answer_of_its_kind(leaf):
    status, _ = answer(leaf)
    # What did not arrive whole may be sent again, and is no trouble of ours nevertheless.
    is_ours = issubclass(leaf, ingress.Unavailable) and leaf is not ingress.Incomplete
    assert is_ours == (status == 503)
    assert issubclass(leaf, ingress.Refused) <= (400 <= status < 500)


@pytest.mark.parametrize("leaf", leaves(books.LedgerError))
def test_every_error_of_the_books_has_an_answer_of_its_kind(leaf):
    status, _ = answer(leaf)
    assert issubclass(leaf, books.Unavailable) == (status == 503)
    assert issubclass(leaf, books.Refused) == (400 <= status < 500)


def test_the_trees_are_walked_to_their_leaves():
    assert ingress.NotAReward in set(leaves(ingress.IngressError))
    assert books.IdempotencyConflict in set(leaves(books.LedgerError))


def test_a_problem_has_one_title():
    assert len({row.slug for row in PROBLEMS.values()}) == len(set(PROBLEMS.values()))


def test_nothing_is_answered_with_500_or_3xx():
    statuses = {row.status for row in PROBLEMS.values()}
    assert all(400 <= status < 500 or status == 503 for status in statuses)


def test_an_error_nobody_thought_of_is_trouble_of_ours():
    assert PROBLEMS[Exception].status == 503


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ingress.TooLarge, 413),
        (ingress.Incomplete, 400),
        (ingress.NotAJsonContentType, 415),
        (ingress.NotBelieved, 401),
        (ingress.TooManyFailures, 429),
        (ingress.NotCheckedInTime, 503),
        (ingress.NotCanonical, 401),
        (ingress.NotJson, 400),
        (ingress.NotAReward, 422),
        (books.IdempotencyConflict, 409),
        (books.UnknownCurrency, 422),
        (books.InvalidAmount, 422),
        (books.BrokenRule, 422),
        (books.DatabaseUnavailable, 503),
        (books.DeadlineExceeded, 503),
        (books.Overloaded, 503),
        (falcon.HTTPNotFound, 404),
        (falcon.HTTPRouteNotFound, 404),
        (falcon.HTTPMethodNotAllowed, 405),
        (falcon.HTTPBadRequest, 400),
        (falcon.HTTPInvalidHeader, 400),
    ],
)
def test_the_status_of_an_error(error, status):
    assert answer(error)[0] == status
