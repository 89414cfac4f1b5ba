"""The command line: one file a subcommand, each thin. This file turns every error into one line on
stderr and the documented exit status.

What isn't needed is not imported, click included: start-up time is part of the product.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from contextlib import suppress

from pyvmm.errors import ConfigError, PyvmmError

# Start-up makes many objects and no garbage, so looking for some would cost a twentieth of it.
# A subcommand that stays for long switches the collector on again.
gc.disable()

COMPLETION = "_PYVMM_COMPLETE"
"""By this variable the shell asks for completions, click's affair."""

STATUS_ERROR, STATUS_USAGE, STATUS_INTERRUPTED = 1, 2, 130

OUTPUT_LOST = frozenset((errno.EPIPE, errno.ENOSPC, errno.EIO))
"""What printing to a pipe, file or terminal fails with. Any other OSError up here is a bug."""


def main() -> None:
    """The ``pyvmm`` command."""
    _open_standard_streams()
    try:
        status = _call(sys.argv[1:])
    except PyvmmError as error:
        for line in getattr(error, "report", ()):  # the traceback of a device of the user's
            print(line, file=sys.stderr)
        _complain(str(error))
        status = STATUS_USAGE if isinstance(error, ConfigError) else STATUS_ERROR
    except KeyboardInterrupt:
        _complain("interrupted")
        status = STATUS_INTERRUPTED
    except OSError as error:
        if error.errno not in OUTPUT_LOST:
            raise
        if error.errno != errno.EPIPE:  # `pyvmm inspect | head` is no reason to complain
            _complain(f"can't write to stdout: {error.strerror}")
        status = STATUS_ERROR
    # Not sys.exit: taking the interpreter down in order costs 8 ms, and there is nothing left to do
    # but to write what is buffered. A thread that is stuck in a write must not hold us up either.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status or 0)


def _call(words: list[str]) -> int:
    if words[:1] == ["run"] and COMPLETION not in os.environ:
        from pyvmm.cli.options import read

        options = read(words[1:])
        if options is not None:
            from pyvmm.cli.launch import launch

            return launch(options)
    from pyvmm.cli.commands import call

    return call()


def _open_standard_streams() -> None:
    """Let those that were closed be /dev/null: else the next file to be opened gets the number, and
    a disk image takes what is meant for stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (stays open)


def _complain(sentence: str) -> None:
    with suppress(OSError):
        print(f"pyvmm: {' '.join(sentence.split())}", file=sys.stderr)
