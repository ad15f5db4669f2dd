"""Settings of other training programs: how `ftf import-config` translates their files."""
