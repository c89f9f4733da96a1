"""What a run would do and how long it would take, without writing anything to the table.

`plan.plan` is the command. It finds the remaining recordings, times a sample of them on the cluster, and forecasts the rest.
"""
