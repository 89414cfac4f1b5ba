"""The host's side of a device: terminals and streams, disk images."""
