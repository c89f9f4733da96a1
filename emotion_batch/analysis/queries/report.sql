-- the figures of the report, from the sums of `survey.sql`; `{by_label}` stands for the rows of each label

-- name: statuses
SELECT status, sum(n)::BIGINT AS n FROM cells GROUP BY status ORDER BY n DESC, status

-- name: labels
-- The row whose label is null counts all labels. A sum is null if the column is null in all rows.
SELECT emotion, sum(n)::BIGINT, sum(total) / sum(n), sum(if(is_confident, n, 0))::BIGINT,
       sum(if(is_in_domain, 0, n)) FILTER (is_in_domain IS NOT NULL)::BIGINT,
       sum(if(is_speech, 0, n)) FILTER (is_speech IS NOT NULL)::BIGINT
FROM cells WHERE emotion IS NOT NULL GROUP BY ROLLUP (emotion)

-- name: bins
SELECT sum(if(is_confident, n, 0))::BIGINT, sum(if(is_confident, 0, coalesce(n, 0)))::BIGINT
FROM range($n_bins) AS bins(bin) LEFT JOIN (FROM cells WHERE emotion IS NOT NULL) USING (bin) GROUP BY bin ORDER BY bin

-- name: lots
SELECT lot, emotion, stratum, file, start_s, end_s, confidence, error FROM drawn
QUALIFY row_number() OVER (PARTITION BY emotion, stratum ORDER BY lot, file, start_s) <= if(emotion IS NULL, $n_lots, $n_drawn)
ORDER BY emotion, stratum, lot

-- name: levels
-- The number of folders at each level.
SELECT level, count(DISTINCT list_slice(string_split(folder, '/'), 1, level)) AS n
FROM (SELECT DISTINCT folder FROM folders), range(1, $deepest + 1) AS levels(level) GROUP BY level ORDER BY level

-- name: at_level
FROM (
    SELECT array_to_string(list_slice(string_split(folder, '/'), 1, $level), '/') AS name, sum(n)::BIGINT AS n_rows,
           sum(if(is_ok, 0, n))::BIGINT, sum(n_outside)::BIGINT, {by_label}
    FROM folders GROUP BY name ORDER BY n_rows DESC, name LIMIT $most)
ORDER BY name

-- name: clusters
WITH counted AS (SELECT folder, emotion, sum(n)::DOUBLE AS n FROM folders WHERE is_ok GROUP BY ALL),
     totals AS (SELECT folder, sum(n) AS n FROM counted GROUP BY ALL)
SELECT emotion, (SELECT count(*) FROM totals) AS n_folders, sum(counted.n * counted.n) AS of_label,
       sum(counted.n * totals.n) AS of_both, (SELECT sum(n * n) FROM totals) AS of_all
FROM counted JOIN totals USING (folder) WHERE emotion IS NOT NULL GROUP BY ALL

-- name: moments
SELECT moment, {by_label} FROM range($n_moments) AS moments(moment) LEFT JOIN times ON window_number // $step = moment
GROUP BY moment ORDER BY moment

-- name: hours
SELECT channel, emotion, sum(heard_s), sum(speech_s) FROM hours GROUP BY channel, emotion ORDER BY channel

-- name: calls
WITH best AS (SELECT DISTINCT file, share, peak FROM calls ORDER BY share DESC, peak DESC, file LIMIT $n_calls)
SELECT calls.* FROM calls SEMI JOIN best USING (file) ORDER BY share DESC, peak DESC, file, channel, start_s
