"""Guests of our own, in assembly and freestanding C; build.py makes them."""
