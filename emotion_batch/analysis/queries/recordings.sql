-- one row for each recording and channel, with shares and peaks of each label; a query can name it as `recordings`
{heard},
-- A run is speech with one label, without another label or something that is not speech in between.
runs AS (
  SELECT file, channel, emotion, sum(seconds) AS seconds, min(start_s) AS start_s FROM (
    SELECT *, row_number() OVER (PARTITION BY file, channel ORDER BY start_s)
      - row_number() OVER (PARTITION BY file, channel, emotion, is_voice ORDER BY start_s) AS run
    FROM heard WHERE is_heard)
  WHERE is_voice GROUP BY file, channel, emotion, run),
longest AS (
  SELECT file AS of_file, channel AS of_channel, arg_max(emotion, (seconds, -start_s)) AS run_label, max(seconds) AS run_s,
    arg_max(start_s, (seconds, -start_s)) AS run_start_s FROM runs GROUP BY file, channel)
-- share: seconds with a label in a second of speech; confident_share: the same in a second of confident speech.
-- peak: the highest probability of a label in speech, and peak_s: the start of that segment.
SELECT file, channel, round(coalesce(sum(seconds), 0), 3) AS heard_s,
  round(coalesce(sum(seconds) FILTER (WHERE is_voice), 0), 3) AS speech_s,
  count(*) FILTER (WHERE is_confident) AS n_confident, min(start_s) FILTER (WHERE is_confident) AS first_confident_s,
  max(start_s) FILTER (WHERE is_confident) AS last_confident_s, any_value(run_label) AS longest_run,
  round(any_value(run_s), 3) AS longest_run_s, any_value(run_start_s) AS longest_run_start_s,
  round(coalesce(sum(seconds) FILTER (WHERE is_voice AND emotion = '{label}'), 0) / sum(seconds) FILTER (WHERE is_voice), 3) AS "share_{label}",
  round(coalesce(sum(seconds) FILTER (WHERE is_confident AND emotion = '{label}'), 0) / sum(seconds) FILTER (WHERE is_confident), 3) AS "confident_share_{label}",
  round(max("p_{label}") FILTER (WHERE is_voice), 3) AS "peak_{label}",
  arg_max(start_s, ("p_{label}", -start_s)) FILTER (WHERE is_voice) AS "peak_s_{label}",
FROM heard LEFT JOIN longest ON file = of_file AND channel IS NOT DISTINCT FROM of_channel GROUP BY file, channel ORDER BY file, channel
