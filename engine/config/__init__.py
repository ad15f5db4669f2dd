"""What a job is configured with: fields, ranges, defaults, recipes."""
