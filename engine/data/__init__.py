"""Reads files of rows, decides which tokens are trained and which rows are held out, and writes token shards."""
