"""The HTML of the report: sections, charts and the safe building of markup.

`document.render` gives the whole page from the statistics of a table. Nothing here computes a statistic of rows.
"""
