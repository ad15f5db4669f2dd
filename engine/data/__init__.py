"""From files of rows to token shards: what is read, what is trained, what is held out."""
