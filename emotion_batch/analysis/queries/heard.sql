-- Only rows with the status ok are heard. Each counts from its start to the next start in its recording and channel, but at most its
-- own length. If the model cannot tell what is speech, all of it counts as speech. What is confident is always speech.
WITH heard AS (
  SELECT *, status = 'ok' AS is_heard, is_heard AND coalesce(is_speech, true) AS is_voice,
    lead(start_s, 1, end_s) OVER (PARTITION BY file, channel, status ORDER BY start_s) AS next_s,
    CASE WHEN is_heard THEN least(end_s, next_s) - start_s END AS seconds
  FROM labels)
