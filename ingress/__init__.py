"""Where rewards come in: signed bytes → ``ledger.reward.Reward`` → the books.

Read it in the data's order: ``webhook`` (receive, verify, parse, post, answer), ``signature`` and
``canonical`` (what is believed), ``payload`` (what it says); then ``app``, which puts them
together, ``config`` and ``gunicorn_conf``.
"""
