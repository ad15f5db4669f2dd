"""The configuration of a job: fields, ranges, defaults, recipes."""
