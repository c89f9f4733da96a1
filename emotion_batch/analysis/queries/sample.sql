-- what a sheet of a review is drawn from, in some rows of a label table, the view `chunk`; `{labelled}` stands for the first

-- name: labelled
-- Rows with a label, with the number of their stratum, and with a random number from the seed.
WITH labelled AS (
    SELECT *, md5_number_lower(concat_ws('/', $seed, start_s, channel, file)) AS lot, NOT coalesce(is_in_domain, true) AS is_far,
           2 * len(list_filter($edges, lambda edge: edge <= confidence::DOUBLE)) + coalesce(is_confident, false)::INTEGER AS stratum
    FROM chunk WHERE status = 'ok')

-- name: parts
SELECT count(DISTINCT shard) AS n FROM chunk

-- name: sizes
{labelled} FROM labelled SELECT stratum, count(*) AS n GROUP BY stratum

-- name: random
{labelled}
FROM labelled QUALIFY row_number() OVER (PARTITION BY stratum ORDER BY lot, file, start_s) <= $n_random

-- name: informative
-- Rows with the smallest margin, one from each recording. Sound that is not speech has no emotion to learn.
{labelled}, speech AS (
    FROM labelled WHERE coalesce(is_speech, true)
    QUALIFY row_number() OVER (PARTITION BY emotion, is_far, file ORDER BY margin, lot, start_s) = 1)
FROM speech QUALIFY row_number() OVER (PARTITION BY emotion, is_far ORDER BY margin, lot, file) <= $n_rows
