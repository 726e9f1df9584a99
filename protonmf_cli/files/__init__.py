"""Edge: disk in, disk out."""
