-- what the report counts in some rows of a table, the view `chunk`; `scan.survey` adds the results up

-- name: found
SELECT shard, count(DISTINCT file) FILTER (status = 'ok') AS n_labelled FROM chunk GROUP BY shard

-- name: cells
SELECT status, emotion, greatest(0, least($n_bins - 1, ceil(confidence * $n_bins)::INTEGER - 1)) AS bin,
       is_confident, is_in_domain, is_speech, count(*) AS n, sum(confidence) AS total
FROM chunk GROUP BY ALL

-- name: folders
SELECT parse_dirpath(file, 'forward_slash') AS folder, status = 'ok' AS is_ok, emotion, count(*) AS n,
       count(*) FILTER (NOT is_in_domain) AS n_outside
FROM chunk GROUP BY ALL

-- name: times
SELECT round(start_s / $hop_s)::BIGINT AS window_number, emotion, count(*) AS n
FROM chunk WHERE status = 'ok' GROUP BY ALL

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
