"""The process that delivers the events of jobs to webhooks and trackers: `python -m gateway.deliveries`."""
