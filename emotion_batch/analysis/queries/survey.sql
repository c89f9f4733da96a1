-- what the report counts in some rows of a table, the view `chunk`; `scan.survey` adds the results up

-- name: found
SELECT shard, count(DISTINCT file) FILTER (status = 'ok') AS n_labelled FROM chunk GROUP BY shard

-- name: cells
SELECT status, emotion, greatest(0, least($n_bins - 1, ceil(confidence * $n_bins)::INTEGER - 1)) AS bin,
       is_confident, is_in_domain, is_speech, count(*) AS n, sum(confidence) AS total
FROM chunk GROUP BY ALL

-- name: folders
-- A date such as 2026-01-31 is three levels, so that there are months and years to choose from.
SELECT regexp_replace(parse_dirpath(file, 'forward_slash'), '(^|/)(\d{4})-(\d\d)-(\d\d)(/|$)', '\1\2/\3/\4\5', 'g') AS folder, status = 'ok' AS is_ok, emotion, count(*) AS n,
       count(*) FILTER (NOT is_in_domain) AS n_outside
FROM chunk GROUP BY ALL

-- name: times
SELECT round(start_s / $hop_s)::BIGINT AS window_number, emotion, count(*) AS n
FROM chunk WHERE status = 'ok' GROUP BY ALL

-- name: hours
-- Seconds by channel and label.
{heard}
SELECT channel, emotion, sum(seconds) AS heard_s, coalesce(sum(seconds) FILTER (WHERE is_voice), 0) AS speech_s
FROM heard WHERE is_heard GROUP BY channel, emotion

-- name: calls
-- The segments of the recordings with the largest share of confident speech with one label, in the channel that has most of it.
{heard},
shares AS (
    SELECT file, coalesce(sum(seconds) FILTER (WHERE is_confident AND emotion = $about), 0) / sum(seconds) AS share,
           max({probability}) AS peak
    FROM heard WHERE is_voice GROUP BY file, channel),
ranked AS (
    SELECT file, max((share, peak)) AS best FROM shares GROUP BY file ORDER BY best DESC, file LIMIT $n_calls)
SELECT file, best[1] AS share, best[2] AS peak, channel, start_s, start_s + seconds AS stop_s, emotion, coalesce(is_confident, false) AS is_confident,
       is_voice, {probability} AS probability
FROM heard JOIN ranked USING (file) WHERE is_heard

-- name: drawn
-- Random rows of each label and stratum, or of each status other than ``ok``.
WITH lots AS (
    SELECT *, hash(file, start_s, $seed) AS lot,
           CASE WHEN status <> 'ok' THEN status WHEN NOT is_in_domain THEN 'outside'
                WHEN is_confident THEN 'confident' ELSE 'unsure' END AS stratum
    FROM chunk WHERE status <> 'ok' OR emotion IS NOT NULL)
SELECT emotion, stratum, unnest(arg_min(struct_pack(
    lot := lot, file := file, start_s := start_s, end_s := end_s, confidence := confidence, error := error), lot, $n_lots),
    recursive := true)
FROM lots GROUP BY emotion, stratum
