"""The PC: one file a device.

Registers, bits and commands have the names of their documents, in plain classes of integers, here
as in boot/ and virtio/: a class that is no enum is built sixteen times as fast, and there are some
forty of them to build at each start. An enum is used where its members are passed around as values
of that type, or listed by their names.
"""
