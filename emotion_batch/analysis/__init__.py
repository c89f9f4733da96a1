"""What people do with a finished table: report, query, export and review.

Each has a module of its name; the report's page lies in `templates`. DuckDB is imported only by `query` and `scan`, Jinja only by
`report`. This room reads tables, never changes them, and knows nothing of Dask, runs or training.
"""
