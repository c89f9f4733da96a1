-- failed rows by status, with an example of each
SELECT status, count(*) AS n, min(file) AS example, arg_min(error, file) AS error
FROM labels WHERE status <> 'ok' GROUP BY status ORDER BY n DESC, status
