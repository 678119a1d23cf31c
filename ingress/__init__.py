"""Where rewards come in: signed bytes → ``ledger.reward.Reward`` → the books.

Read it in the data's order: ``webhook`` (receive, verify, parse, post, answer); ``receiving`` (a
body within its bounds), ``peers`` and ``limiting`` (who may speak), ``signature``, ``canonical``
and ``tokens`` (what is believed), ``payload`` with ``mapping``, ``source`` and ``toml_lines``
(what it says), ``keeping`` and ``replaying`` (what cannot be posted), ``spooling``, ``spool``,
``spool_file`` and ``draining`` (while Postgres is away). Then ``app``, which puts them together,
``config``, ``gunicorn_conf``, ``connections`` and ``ending``; and what is seen from outside:
``observation``, ``observing``, ``metrics``, ``watching``, ``tallying``, ``sharing``, ``exporting``
and ``health``.
"""
