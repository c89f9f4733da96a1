-- emotions by minute of the recordings (needs a table made with --window)
SELECT (start_s // 60)::INT AS minute, emotion, count(*) AS n,
  round(count(*) / sum(count(*)) OVER (PARTITION BY minute), 3) AS share
FROM labels WHERE status = 'ok' GROUP BY minute, emotion ORDER BY minute, n DESC, emotion
