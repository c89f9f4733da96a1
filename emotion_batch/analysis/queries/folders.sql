-- rows, failed rows and most frequent emotion of each folder, below the folders that all recordings share
WITH places AS (
  SELECT parse_dirpath(file, 'forward_slash') AS place, emotion, count(*) AS n,
    count(*) FILTER (WHERE status <> 'ok') AS failed, sum(confidence) AS confidence
  FROM labels GROUP BY place, emotion),
-- All names share the folders that the first and the last of them share.
ends AS (SELECT string_split(min(place || '/'), '/') AS first, string_split(max(place || '/'), '/') AS last FROM places),
shared AS (SELECT len(list_filter(range(1, len(first) + 1), lambda n: first[:n] = last[:n])) AS depth FROM ends)
SELECT folder, sum(n)::BIGINT AS n, sum(failed)::BIGINT AS n_failed,
  max((n, emotion)) FILTER (WHERE emotion IS NOT NULL)[2] AS emotion,
  round(sum(confidence) / nullif(sum(n - failed), 0), 3) AS confidence
FROM (
  SELECT array_to_string(string_split(place, '/')[:depth + 1], '/') AS folder, emotion,
    sum(n) AS n, sum(failed) AS failed, sum(confidence) AS confidence
  FROM places, shared GROUP BY folder, emotion
) GROUP BY folder ORDER BY folder
