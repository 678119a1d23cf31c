"""The books: rewards in, balances out.

A newcomer reads ``reward`` and ``posting`` (what is booked, and how), ``migrations/0001_books.sql``
(the specification: tables and their rules), ``writing`` (the only door in for rewards),
``correction`` and ``correcting`` (the other one, for what mends a mistake), ``history`` and
``reading`` (the only door out), ``coalescing`` (how many callers share one round trip), then
``access`` (who may ask), ``service``, ``calls`` and ``server`` (the questions over gRPC; of these,
``reversing`` alone knows a door in), and ``operations`` (what the operator's commands do).
"""
