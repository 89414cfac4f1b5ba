"""``pyvmm report``: a trace, made into a page."""

from __future__ import annotations

import os

import click

from pyvmm.errors import ConfigError


@click.command()
@click.argument("trace", type=click.Path(readable=False, allow_dash=True))
@click.option(
    "-o",
    "--output",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="Where to write the page; '-' is stdout.  [default: TRACE's name, ending in .html]",
)
def report(trace: str, output: str | None) -> None:
    """Make a page of charts from a trace, to be opened in a browser.

    TRACE is what `pyvmm run --trace x.jsonl` has written, or that compressed by gzip; '-' is stdin.
    Text and Perfetto traces can't be read back.

    The page shows the boot's phases and console lines on a timeline; the exits by reason and by
    device; the hottest registers and guest addresses; interrupts; the virtqueues' depth and
    latency; the memory touched; and the time spent in PyVMM. It is one file without links to
    others, and needs no network. Its first sentences are printed here, too.

    Lines of the trace that are damaged or cut are left out, and counted on stderr and on the page.

    \b
    Examples:
      pyvmm run -k bzImage -d disk.raw --trace boot.jsonl; pyvmm report boot.jsonl
      pyvmm report boot.jsonl.gz -o boot.html
      pyvmm run -k bzImage -d disk.raw --report boot.html
      zcat boot.jsonl.gz | pyvmm report - -o - > boot.html

    \b
    Exit status:
      0    the page is written
      1    the trace can't be read or isn't one, or the page can't be written
      2    usage
    """
    from pyvmm.report import write_report
    from pyvmm.report.summary import answers, plural

    if output is None:
        if trace == "-":
            raise ConfigError("--output: needed when the trace comes from stdin")
        output = _named_after(trace)
    if _same_file(trace, output):
        raise ConfigError(f"--output: {output} is the trace itself")
    totals = write_report(trace, output)
    if totals.damaged:
        lines = plural(totals.damaged, "damaged line").replace("\u00a0", " ")
        click.echo(f"pyvmm: {trace}: {lines} left out", err=True)
    if output != "-":
        for answer in answers(totals):
            click.echo(answer.replace("\u00a0", " "))
        click.echo(f"Written: {output}")


def _named_after(trace: str) -> str:
    stem = trace.removesuffix(".gz")
    for ending in (".jsonl", ".json"):
        stem = stem.removesuffix(ending)
    return f"{stem}.html"


def _same_file(trace: str, output: str) -> bool:
    try:
        return os.path.samefile(trace, output)
    except OSError:
        return False
