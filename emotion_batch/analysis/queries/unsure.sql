-- the labels with the lowest confidence
SELECT file, channel, start_s, emotion, round(confidence, 3) AS confidence, round(margin, 3) AS margin, is_in_domain, is_speech
FROM labels WHERE status = 'ok' ORDER BY labels.confidence, file, start_s, channel LIMIT 20
