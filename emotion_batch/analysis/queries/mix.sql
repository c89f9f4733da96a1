-- rows and mean confidence of each emotion
SELECT emotion, count(*) AS n, round(count(*) / sum(count(*)) OVER (), 3) AS share,
  round(avg(confidence), 3) AS confidence, count(*) FILTER (WHERE is_confident) AS n_confident
FROM labels WHERE status = 'ok' GROUP BY emotion ORDER BY n DESC, emotion
