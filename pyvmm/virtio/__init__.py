"""Virtio 1.2: the virtqueue, the transports, and one file a device type."""
