"""``pyvmm check``: what this host can do."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from pyvmm import hostcheck

MARKS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


@click.command()
@click.option("--linux", is_flag=True, help="Fail unless stock Linux kernels run here, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.pass_context
def check(ctx: click.Context, linux: bool, as_json: bool) -> None:
    """Say what this host can do, and how to fix what it can't.

    Looks at /dev/kvm, its permissions and capabilities, tells hardware from software KVM, runs a
    tiny guest, and looks for tap networking. For each failure it prints the command that fixes
    it. The exit status is 0 if guests run here (with --linux: if Linux does), else 1.

    \b
    Examples:
      pyvmm check
      pyvmm check --linux && pyvmm run --kernel bzImage
      pyvmm check --json | jq .linux
    """
    findings = hostcheck.examine()
    guests, runs_linux = hostcheck.runs_guests(findings), hostcheck.runs_linux(findings)
    if as_json:
        facts = {"guests": guests, "linux": runs_linux, "findings": [asdict(f) for f in findings]}
        click.echo(json.dumps(facts, indent=2))
    else:
        for finding in findings:
            click.echo(f"{MARKS[finding.level]}  {finding.name:13} {finding.detail}")
            if finding.fix:
                click.echo(f"{'':20}fix: {finding.fix}")
        click.echo(_verdict(guests, runs_linux))
    ctx.exit(0 if (runs_linux if linux else guests) else 1)


def _verdict(guests: bool, runs_linux: bool) -> str:
    if runs_linux:
        return "This host runs Linux guests."
    if guests:
        return "This host runs small guests, but no stock Linux kernel."
    return "This host can't run guests yet."
