"""Run a Dockerfile's own steps without a container engine: `python -m tools.docker.run_steps ROOT WORK [options]`.

ROOT is a clean system in a folder, such as `debootstrap --variant=minbase` makes, and stands in for the image after the
first FROM. Every stage is an overlay over the one it begins from, below WORK; RUN lines are executed as they are, by
chroot, with their mounts; COPY sees what .dockerignore leaves. At the end ENTRYPOINT is started as USER with the
arguments after `--`, HEALTHCHECK is run until it succeeds, and SIGTERM must end it with exit status 0. Needs root and
Linux. What it does not prove: that the base image can be pulled, and anything about GPUs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from .dockerfile import Dockerfile, Instruction, Stage, context_files, parse, substitute

USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSIDE = "--in-own-mounts"
HEALTH_PATIENCE_S = 300.0
STOP_PATIENCE_S = 60.0


@dataclass
class Image:
    """A finished stage: its layers (lowest last, as overlayfs wants them) and what it is configured to do."""

    layers: list[Path]
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    words: dict[str, list[str]] = field(default_factory=dict)  # ENTRYPOINT, CMD, HEALTHCHECK's command


class Build:
    def __init__(self, options: argparse.Namespace) -> None:
        self.context = Path(options.context).resolve()
        self.work = Path(options.work).resolve()
        self.base = Image([Path(options.root).resolve()], {"PATH": USUAL_PATH})
        self.given = dict(pair.split("=", 1) for pair in options.build_arg)
        self.outside = dict(pair.split("=", 1) for pair in options.env)
        self.binds = [Path(path) for path in options.bind]
        self.images: dict[str, Image] = {}
        self.files = context_files(self.context, (self.context / ".dockerignore").read_text())

    def run(self, dockerfile: Dockerfile) -> Image:
        image = self.base
        for number, stage in enumerate(dockerfile.stages):
            image = self.stage(stage, stage.name or f"stage-{number}")
        return image

    def stage(self, stage: Stage, name: str) -> Image:
        parent = self.images.get(stage.base, self.base)
        upper = self.work / name
        upper.mkdir()
        image = Image(
            [upper, *parent.layers], dict(parent.env), parent.workdir, parent.user, dict(parent.words)
        )
        arguments: dict[str, str] = {}
        with mounted(image, self.work, self.binds) as root:
            for each in stage.instructions:
                self.instruction(each, image, root, arguments)
        self.images[name] = image
        return image

    def instruction(self, each: Instruction, image: Image, root: Path, arguments: dict[str, str]) -> None:
        values = {**arguments, **image.env}
        match each.name:
            case "ARG":
                name, _, default = each.words()[0].partition("=")
                arguments[name] = self.given.get(name, default)
            case "ENV":
                for word in shlex.split(each.text):
                    name, _, value = word.partition("=")
                    image.env[name] = substitute(value, values)
            case "WORKDIR":
                image.workdir = each.text
                (root / each.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = each.text
            case "COPY":
                self.copy(each, root)
            case "RUN":
                self.step(each, image, root, values)
            case "ENTRYPOINT" | "CMD":
                image.words[each.name] = each.words()
            case "HEALTHCHECK":
                command = each.text.partition("CMD")[2].strip()
                image.words[each.name] = Instruction("CMD", (), command, each.line).words()
            case "LABEL" | "EXPOSE" | "STOPSIGNAL" | "VOLUME":
                pass
            case _:
                raise SystemExit(f"line {each.line}: {each.name} is not known here")

    def copy(self, each: Instruction, root: Path) -> None:
        if each.flags:
            raise SystemExit(f"line {each.line}: COPY --{each.flags[0][0]} is not known here")
        *sources, target = each.words()
        for source in sources:
            wanted = PurePosixPath(source)
            chosen = [name for name in self.files if wanted in (name, *name.parents)]
            if not chosen:
                raise SystemExit(f"line {each.line}: COPY {source}: not in the context")
            for name in chosen:
                inner = name.relative_to(wanted) if name != wanted else PurePosixPath(name.name)
                place = root / target.lstrip("/") / inner
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.context / name, place)

    def step(self, each: Instruction, image: Image, root: Path, values: dict[str, str]) -> None:
        print(f"--- line {each.line}: RUN {each.text}", flush=True)
        mounts = [path for kind, spec in each.flags if kind == "mount" for path in [self.mount(spec, root)]]
        began = time.monotonic()
        command = ["/bin/sh", "-c", each.text]
        status = subprocess.run(
            chroot(root, image, command), env={**values, **self.outside, "HOME": "/root"}
        ).returncode
        for path in reversed(mounts):
            subprocess.run(["umount", str(path)], check=True)
        if status:
            raise SystemExit(f"line {each.line}: RUN ended with exit status {status}")
        print(f"--- {time.monotonic() - began:.0f} s", flush=True)

    def mount(self, spec: str, root: Path) -> Path:
        """Mount what RUN --mount=`spec` asks for; the place."""
        asked = dict(part.partition("=")[::2] for part in spec.split(","))
        target = root / asked["target"].lstrip("/")
        if asked["type"] == "cache":
            source = self.work / "cache" / asked["target"].strip("/").replace("/", "-")
            source.mkdir(parents=True, exist_ok=True)
        else:
            layers = self.images[asked["from"]].layers
            inner = asked["source"].lstrip("/")
            source = next(layer / inner for layer in layers if (layer / inner).exists())
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
        return target


def chroot(root: Path, image: Image, command: list[str]) -> list[str]:
    moved = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', image.workdir, *command]
    return ["chroot", f"--userspec={image.user}", "--groups=", str(root), *moved]


@contextmanager
def mounted(image: Image, work: Path, binds: list[Path]) -> Iterator[Path]:
    """The image's layers as one root, with /proc, /dev and the host's name resolution; the first layer is written."""
    root, scratch = work / "mnt", work / "overlay"
    for path in (root, scratch):
        path.mkdir(exist_ok=True)
    layers = ":".join(str(layer) for layer in image.layers[1:])
    settings = f"lowerdir={layers},upperdir={image.layers[0]},workdir={scratch}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", settings, str(root)], check=True)
    try:
        for name in ("proc", "dev", "sys"):
            subprocess.run(["mount", "--rbind", f"/{name}", str(root / name)], check=True)
        for name in ("etc/resolv.conf", "etc/hosts"):
            (root / name).touch()
            subprocess.run(["mount", "--bind", f"/{name}", str(root / name)], check=True)
        for path in binds:
            target = root / str(path).lstrip("/")
            target.mkdir(parents=True, exist_ok=True) if path.is_dir() else target.touch()
            subprocess.run(["mount", "--bind", str(path), str(target)], check=True)
        yield root
    finally:
        subprocess.run(["umount", "--recursive", str(root)], check=True)


def serve(image: Image, work: Path, arguments: list[str]) -> None:
    """ENTRYPOINT as an engine would start it, until HEALTHCHECK is content; then SIGTERM."""
    upper = work / "container"
    upper.mkdir()
    container = Image([upper, *image.layers], image.env, image.workdir, image.user, image.words)
    with mounted(container, work, []) as root:
        words = [*container.words["ENTRYPOINT"], *arguments]
        print(f"--- {shlex.join(words)}", flush=True)
        began = time.monotonic()
        process = subprocess.Popen(
            chroot(root, container, ["/usr/bin/env", *words]), env=container.env, start_new_session=True
        )
        try:
            check = chroot(root, container, ["/usr/bin/env", *container.words["HEALTHCHECK"]])
            while subprocess.run(check, env=container.env, stderr=subprocess.DEVNULL).returncode:
                if process.poll() is not None:
                    raise SystemExit(f"it ended with exit status {process.returncode}")
                if time.monotonic() - began > HEALTH_PATIENCE_S:
                    raise SystemExit(f"not healthy after {HEALTH_PATIENCE_S:.0f} s")
                time.sleep(1)
            print(f"--- healthy after {time.monotonic() - began:.0f} s", flush=True)
            process.terminate()
            status = process.wait(STOP_PATIENCE_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        print(f"--- SIGTERM: exit status {status}", flush=True)
        if status:
            raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", metavar="ROOT", help="the clean system")
    parser.add_argument("work", metavar="WORK", help="an empty folder; remove it afterwards")
    parser.add_argument("--context", default=".", help="where the Dockerfile is")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for RUN steps alone"
    )
    parser.add_argument(
        "--bind", action="append", default=[], metavar="PATH", help="of the host, at the same place"
    )
    parser.add_argument("serve", nargs="*", metavar="ARGUMENT", help="of the entry point, after --")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.in_own_mounts:
        # Whatever happens, no mount outlives the process.
        own = [*("unshare", "--mount"), sys.executable, "-m", __spec__.name, INSIDE, *sys.argv[1:]]
        os.execvp("unshare", own)
    build = Build(options)
    image = build.run(parse((build.context / "Dockerfile").read_text()))
    serve(image, build.work, options.serve)


if __name__ == "__main__":
    main()
