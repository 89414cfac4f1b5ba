"""Recipes for the guests that PyVMM is shown and tested with.

``python3 -m guests.kernel``, ``guests.initramfs``, ``guests.disk`` and ``guests.demo``, run from
the checkout with nothing but the standard library; what they make lies in ``build/``.
"""
