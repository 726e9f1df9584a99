"""Where labelled images lie: folders, archives, shards, tables and lists, on this machine or behind a URL."""
