"""What ``ledger verify`` derives again of what finance asks: roll-ups and statements.

From the postings, the rewards and the corrections; statements from another roll-up than made them.
"""

MOVED = "a day's movements are the sum of its postings"

# As `ledger.writing` and `ledger.correcting` cut the texts.
MOVEMENTS = """
WITH posted AS (
    SELECT posted_at, postings.currency, 'reward' AS kind, campaign_id, type, reward_type,
           reward_category, 0 AS debit, amount AS credit
    FROM postings
    LEFT JOIN rewards ON rewards.reward_id = postings.reward_id
    WHERE correction_key IS NULL
      AND (%(since)s::timestamptz IS NULL OR posted_at >= %(since)s::timestamptz)
    UNION ALL
    SELECT posted_at, postings.currency, kind, campaign_id, type, reward_type, reward_category,
           CASE WHEN starts_with(postings.debit_account, 'user:') THEN postings.amount ELSE 0 END,
           CASE WHEN starts_with(postings.credit_account, 'user:') THEN postings.amount ELSE 0 END
    FROM postings
    LEFT JOIN corrections ON corrections.correction_key = postings.correction_key
    LEFT JOIN rewards ON rewards.reward_id = corrections.reward_id
    WHERE postings.correction_key IS NOT NULL
      AND (%(since)s::timestamptz IS NULL OR posted_at >= %(since)s::timestamptz)
),
derived AS (
    SELECT
        (posted_at AT TIME ZONE 'UTC')::date AS day, currency, coalesce(kind, '') AS kind,
        left(coalesce(campaign_id, ''), 200) AS campaign_id, left(coalesce(type, ''), 100) AS type,
        left(coalesce(reward_type, ''), 100) AS reward_type,
        left(coalesce(reward_category, ''), 100) AS reward_category,
        sum(debit) AS debits, sum(credit) AS credits, count(*) AS postings
    FROM posted
    GROUP BY 1, 2, 3, 4, 5, 6, 7
)
SELECT
    concat_ws(
        ' ', coalesce(derived.day, held.day), coalesce(derived.currency, held.currency),
        coalesce(derived.kind, held.kind), coalesce(derived.campaign_id, held.campaign_id),
        coalesce(derived.type, held.type),
        coalesce(derived.reward_type, held.reward_type),
        coalesce(derived.reward_category, held.reward_category)
    ),
    derived.debits || ' / ' || derived.credits || ' in ' || derived.postings,
    held.debits || ' / ' || held.credits || ' in ' || held.postings
FROM derived
FULL JOIN (
    SELECT day, currency, kind, campaign_id, type, reward_type, reward_category, debits, credits,
           postings
    FROM movements
    WHERE %(since)s::timestamptz IS NULL OR day >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date
) AS held
    ON held.day = derived.day AND held.currency = derived.currency AND held.kind = derived.kind
    AND held.campaign_id = derived.campaign_id AND held.type = derived.type
    AND held.reward_type = derived.reward_type AND held.reward_category = derived.reward_category
WHERE (derived.debits, derived.credits, derived.postings)
    IS DISTINCT FROM (held.debits, held.credits, held.postings)
"""

_PERIOD_PARTS = """
SELECT
    concat_ws(' ', held.currency, held.period, held.starts_at),
    concat_ws(' ', coalesce(derived.reversals, 0), coalesce(derived.reversed, 0),
              coalesce(derived.granted, 0), coalesce(derived.taken, 0)),
    concat_ws(' ', held.reversals, held.reversed, held.granted, held.taken)
FROM period_totals AS held
LEFT JOIN (
    SELECT
        postings.currency, period, date_trunc(period, posted_at, 'UTC') AS starts_at,
        count(*) FILTER (WHERE kind = 'reversal') AS reversals,
        coalesce(sum(postings.amount) FILTER (WHERE kind = 'reversal'), 0) AS reversed,
        coalesce(sum(postings.amount) FILTER (
            WHERE kind = 'adjustment' AND starts_with(postings.credit_account, 'user:')
        ), 0) AS granted,
        coalesce(sum(postings.amount) FILTER (
            WHERE kind = 'adjustment' AND starts_with(postings.debit_account, 'user:')
        ), 0) AS taken
    FROM postings
    JOIN corrections ON corrections.correction_key = postings.correction_key
    CROSS JOIN (VALUES ('day'), ('minute')) AS periods (period)
    GROUP BY 1, 2, 3
) AS derived
    ON derived.currency = held.currency AND derived.period = held.period
    AND derived.starts_at = held.starts_at
WHERE (
    coalesce(derived.reversals, 0), coalesce(derived.reversed, 0),
    coalesce(derived.granted, 0), coalesce(derived.taken, 0)
) <> (held.reversals, held.reversed, held.granted, held.taken)
"""

# Put together a second time: from the movements, which the rule above holds.
STATEMENTS = """
WITH kinds (kind, of) AS (
    VALUES ('adjustment', '{adjustment}'::text[]), ('campaign', '{reward,reversal}'),
           ('user', '{reward,reversal,adjustment}')
),
lines AS (
    SELECT
        month, currency, kinds.kind,
        concat_ws(
            E'\\t', currency, kinds.kind,
            round(coalesce(sum(moved) FILTER (WHERE starts_on < month), 0), scale),
            round(coalesce(sum(moved) FILTER (WHERE at_once AND moved_by = 'reward'), 0), scale),
            round(coalesce(sum(moved) FILTER (WHERE at_once AND moved_by = 'reversal'), 0), scale),
            round(coalesce(sum(moved) FILTER (
                WHERE at_once AND moved_by = 'adjustment'
            ), 0), scale),
            round(coalesce(sum(moved), 0), scale),
            coalesce(sum(postings) FILTER (WHERE at_once AND moved_by = 'reward'), 0),
            coalesce(sum(postings) FILTER (WHERE at_once AND moved_by = 'reversal'), 0),
            coalesce(sum(postings) FILTER (WHERE at_once AND moved_by = 'adjustment'), 0)
        ) AS line
    FROM statements
    JOIN (
        SELECT currency, min(day) AS began_on FROM movements GROUP BY currency
    ) AS told ON began_on < month + interval '1 month'
    JOIN currencies ON code = currency
    CROSS JOIN kinds
    LEFT JOIN (
        SELECT currency AS of_currency, kind AS moved_by,
               date_trunc('month', day::timestamp)::date AS starts_on,
               sum(credits) - sum(debits) AS moved, sum(postings) AS postings
        FROM movements GROUP BY 1, 2, 3
    ) AS moves ON of_currency = currency AND moved_by = ANY(of) AND starts_on <= month
    CROSS JOIN LATERAL (SELECT starts_on = month AS at_once) AS placed
    GROUP BY month, currency, kinds.kind, scale
),
derived AS (
    SELECT
        month, text,
        concat_ws(
            E'\\n', E'statement\\t' || to_char(month, 'YYYY-MM'),
            E'previous\\t' || coalesce(
                lag(encode(sha256(convert_to(text, 'UTF8')), 'hex')) OVER (ORDER BY month), 'none'
            ),
            E'position\\t' || position,
            concat_ws(
                E'\\t', 'currency', 'kind', 'opening', 'rewarded', 'reversed', 'adjusted',
                'closing', 'rewards', 'reversals', 'adjustments'
            ),
            (SELECT string_agg(line, E'\\n' ORDER BY currency, kind COLLATE "C") FROM lines
             WHERE lines.month = statements.month), ''
        ) AS again
    FROM statements
)
SELECT
    to_char(month, 'YYYY-MM'),
    (SELECT string_agg(line, E'\\n') FROM (
        SELECT unnest(string_to_array(again, E'\\n')) AS line
        EXCEPT SELECT unnest(string_to_array(text, E'\\n'))
    ) AS lines),
    (SELECT string_agg(line, E'\\n') FROM (
        SELECT unnest(string_to_array(text, E'\\n')) AS line
        EXCEPT SELECT unnest(string_to_array(again, E'\\n'))
    ) AS lines)
FROM derived
WHERE text <> again
"""

# Of the last one, when it is gone, no row tells: that month may as well not be closed yet.
MONTHS = """
SELECT to_char(month, 'YYYY-MM'), 'closed, as a later one is', NULL
FROM generate_series(
    (SELECT date_trunc('month', min(starts_at) AT TIME ZONE 'UTC') FROM period_totals
     WHERE period = 'day'),
    (SELECT max(month) FROM statements)::timestamp, interval '1 month'
) AS months (month)
WHERE NOT EXISTS (SELECT FROM statements WHERE statements.month = months.month)
"""

RULES = {
    "what a period's totals tell apart is the sum of its corrections": _PERIOD_PARTS,
    "a statement is what was posted until its month's end": STATEMENTS,
    "months are closed one after the other": MONTHS,
}
"""Each rule of what is small, and the query of what breaks it: subject, expected, found."""
