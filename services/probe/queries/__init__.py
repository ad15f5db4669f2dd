"""Answers questions about data and jobs without creating a job: in children of a serving probe, and without a server.

`query` is the request file of the child program, `fetch` collects what a query needs from the network, `__main__` is
the child program and runs `inspect_dataset`, `dry_run` and `count_tokens`, and `served` runs it for a serving probe.
`chassis.child.query` has the reply file and its reader.
"""
