"""Debian's stock kernels, unmodified, out of their packages.

``python3 -m guests.kernel [FLAVOUR…]`` makes ``build/kernels/FLAVOUR/`` with

    vmlinuz             the bzImage
    config              how it was configured
    release             what ``uname -r`` will say
    lib/modules/RELEASE the modules, with depmod's index

for the flavours cloud (the default), amd64 and rt, and prints each vmlinuz' path.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from guests import artefacts, debian

METAPACKAGES = {
    "cloud": "linux-image-cloud-amd64",
    "amd64": "linux-image-amd64",
    "rt": "linux-image-rt-amd64",
}


def directory(flavour: str) -> Path:
    """Where a flavour lies once it is built."""
    return artefacts.BUILD / "kernels" / flavour


def build(flavour: str = "cloud") -> Path:
    """Fetch a flavour unless it is there; return its vmlinuz."""
    target = directory(flavour)
    inputs = artefacts.digest([], METAPACKAGES[flavour])
    with artefacts.lock():
        if not artefacts.is_fresh(target, inputs):
            with artefacts.making(target, inputs) as unfinished:
                _fetch(METAPACKAGES[flavour], unfinished)
    return target / "vmlinuz"


def release(flavour: str) -> str:
    """A built kernel's release, as ``uname -r`` says it."""
    return (directory(flavour) / "release").read_text().strip()


def module_files(flavour: str, names: list[str]) -> list[Path]:
    """Resolve modules to files, each after those it depends on; built-in ones need none."""
    modules = directory(flavour) / "lib/modules" / release(flavour)
    dependencies = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        dependencies[_name(file)] = [*reversed(needed.split()), file]
    builtin = {_name(line) for line in (modules / "modules.builtin").read_text().splitlines()}
    soft = _soft_dependencies(modules)

    ordered: dict[str, None] = {}
    for name in names:
        if name in builtin:
            continue
        if name not in dependencies:
            raise debian.PackageError(f"the {flavour} kernel has no module {name}")
        for wanted in [*soft.get(name, []), name]:
            ordered.update(dict.fromkeys(dependencies.get(wanted, [])))
    return [modules / file for file in ordered]


def _soft_dependencies(modules: Path) -> dict[str, list[str]]:
    """What a module wants before it beyond its symbols: ext4, say, an implementation of CRC32C."""
    aliases: dict[str, str] = {}
    for line in (modules / "modules.alias").read_text().splitlines():
        alias, _, name = line.removeprefix("alias ").rpartition(" ")
        if alias not in aliases or name.endswith("_generic"):  # which needs no special CPU
            aliases[alias] = name
    soft = {}
    for line in (modules / "modules.softdep").read_text().splitlines():
        _, _, rule = line.partition("softdep ")
        name, _, before = rule.partition(" pre: ")
        soft[name] = [aliases.get(word, word) for word in before.partition(" post:")[0].split()]
    return soft


def _fetch(metapackage: str, target: Path) -> None:
    debian.ensure("depmod")
    debian.unpack(debian.dependency(metapackage), target)
    (image,) = target.glob("boot/vmlinuz-*")
    found = image.name.removeprefix("vmlinuz-")
    image.rename(target / "vmlinuz")
    (target / f"boot/config-{found}").rename(target / "config")
    (target / "release").write_text(found + "\n")
    subprocess.run([str(debian.which("depmod")), "-b", target, found], check=True)


def _name(file: str) -> str:
    return Path(file).name.split(".")[0].replace("-", "_")


def main() -> None:
    """Build the flavours named on the command line."""
    parser = argparse.ArgumentParser(description="Fetch Debian's stock kernels.")
    parser.add_argument("flavour", nargs="*", default=["cloud"], metavar="|".join(METAPACKAGES))
    flavours = parser.parse_args().flavour
    if unknown := [flavour for flavour in flavours if flavour not in METAPACKAGES]:
        parser.error(f"no such flavour: {unknown[0]}")
    try:
        for flavour in flavours:
            print(build(flavour))
    except debian.PackageError as error:
        sys.exit(f"guests: {error}")


if __name__ == "__main__":
    main()
