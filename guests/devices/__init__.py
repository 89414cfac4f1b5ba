"""Devices of a user's own, one of each kind; docs/devices.md explains how to write one."""
