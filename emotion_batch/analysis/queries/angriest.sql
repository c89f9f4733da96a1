-- the recordings with the largest share of confident angry speech, and their peak
{heard}
-- share: seconds of confident angry speech in a second of speech; peak: the highest p_angry of its speech.
SELECT file, channel, round(coalesce(sum(seconds) FILTER (WHERE is_confident AND emotion = 'angry'), 0) / sum(seconds), 3) AS share,
  round(max(p_angry), 3) AS peak, arg_max(start_s, (p_angry, -start_s)) AS peak_s, round(sum(seconds), 3) AS speech_s
FROM heard WHERE is_voice GROUP BY file, channel ORDER BY share DESC, max(p_angry) DESC, file, channel LIMIT 20
