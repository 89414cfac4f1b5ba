"""Devices that users write: ``pyvmm run --device thermometer.py:Thermometer``.

    interface.py   the base classes, which is all that a user's file imports (from pyvmm itself)
    loading.py     from the option's text to an instance
    attachment.py  what stands between the machine and the user's code
    pci.py, virtio.py   the same towards PCI and virtio
    plugging.py    where a device goes, and whether it may

docs/devices.md is for who writes one.
"""
