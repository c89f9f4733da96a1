"""The images of `Dockerfile`: what they are built of, what they leave out, and, in an empty root, what their steps make.

No container engine is needed. `test_the_steps_make_images_that_label` runs each step in a folder that `debootstrap` has filled, as an
engine would run it in a layer.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import av
import pytest
import yaml
from support import servers
from support.commands import ROOT
from support.encoding import encode
from support.recordings import tone

import emotion_batch

DOCKERFILE = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LIBRARIES = Path(av.__file__).parent.parent / "av.libs"
ENCODERS = ("x264", "x265")
RATE = 16_000


@dataclass
class Stage:
    """A stage of the Dockerfile: the image or stage that it begins with, and its steps, each an instruction with its words."""

    begins_with: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def read_stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name, in their order."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    stages: dict[str, Stage] = {}
    for step in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, words = step.split(maxsplit=1)
        if instruction == "FROM":
            begins_with, _, name = words.split()
            stages[name] = Stage(begins_with)
        else:
            list(stages.values())[-1].steps.append((instruction, words))
    return stages


def test_the_image_is_built_of_what_it_needs() -> None:
    """The files that the Dockerfile copies exist, pass .dockerignore, and are all that the wheel is made of; Python is a tested one."""
    stages = read_stages()
    steps = [step for stage in stages.values() for step in stage.steps]
    copied = {
        word
        for instruction, words in steps
        if instruction == "COPY" and "--from" not in words
        for word in words.split()[:-1]
    }
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    parts = {
        *wheel["packages"],
        *wheel["force-include"],
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
    }
    assert {part.split("/")[0] for part in parts} <= copied
    versions = {stage.begins_with for stage in stages.values()} - set(stages)
    assert versions == {f"python:{PROJECT['project']['requires-python'].removeprefix('>=')}-slim"}


def test_a_plain_build_gives_the_image_without_training() -> None:
    """The last stage is `label`, and TensorFlow is installed in another one; neither runs as root."""
    stages = read_stages()
    assert list(stages)[-1] == "label"
    with_training = [name for name, stage in stages.items() if any("[train]" in words for _, words in stage.steps)]
    assert with_training == ["build-train"]
    for name, source in (("label", "build"), ("train", "build-train")):
        assert stages[name] == Stage("base", [("COPY", f"--from={source} /opt/emotion-batch /opt/emotion-batch")])
    assert ("USER", "1000:1000") in stages["base"].steps


def test_kubernetes_runs_the_image_of_this_version() -> None:
    """The tags in the manifest and in the Dockerfile's head, its label, and the citation have the package's version."""
    version = emotion_batch.__version__
    text = DOCKERFILE.read_text()
    assert set(re.findall(r"emotion-batch:(\d[\d.]*\d)", text)) == {version}
    assert f'image.version="{version}"' in text
    assert f'image.licenses="{PROJECT["project"]["license"]}"' in text
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    manifest = (ROOT / "deploy" / "kubernetes" / "label.yaml").read_text()
    images = set(re.findall(r"image: (?:&image )?([^*\s]+)", manifest))
    assert images == {f"emotion-batch:{version}"}
    assert len([*yaml.safe_load_all(manifest)]) > 1


def test_every_library_of_av_is_listed_with_its_licence() -> None:
    """`THIRD_PARTY.md` names each native library in the wheel of `av`, and calls exactly the two encoders GPL."""
    rows = re.findall(r"^\| `av` \| ([^|]+) \| ([^|]+) \|$", (ROOT / "THIRD_PARTY.md").read_text(), re.MULTILINE)
    listed = {name: licence for names, licence in rows for name in re.split(r"[,\s]+", names.partition(":")[0])}
    found = {re.sub(r"^lib(.+?)-[0-9a-f]{8}\.so.*", r"\1", path.name) for path in LIBRARIES.iterdir()}
    assert found == set(listed)
    assert {name for name, licence in listed.items() if licence.startswith("**GPL")} == set(ENCODERS)


def test_without_its_encoders_av_decodes_as_before(tmp_path: Path) -> None:
    """After `deploy/drop_encoders.sh` nothing of x264 and x265 is left, AAC and H.264's container decode, and encoders fail alone."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        servers.missing("gcc and nm")
    packages = tmp_path / "environment" / "lib" / "python3.11" / "site-packages"
    for folder in (LIBRARIES, LIBRARIES.with_name("av")):
        shutil.copytree(folder, packages / folder.name)
    before = {path.name: path.stat().st_size for path in (packages / "av.libs").iterdir()}
    for _ in range(2):
        subprocess.run(["sh", ROOT / "deploy" / "drop_encoders.sh", tmp_path / "environment"], check=True)
    after = {path.name: path.stat().st_size for path in (packages / "av.libs").iterdir()}
    changed = {name for name in before if after[name] != before[name]}
    assert after.keys() == before.keys()
    assert {re.search(r"x26\d", name)[0] for name in changed} == set(ENCODERS)
    assert all(after[name] < 50_000 < before[name] for name in changed)
    recording = tmp_path / "call.m4a"
    recording.write_bytes(encode(tone(2.0, RATE), RATE, "mp4", "aac"))
    code = (
        "import sys, av\n"
        "with av.open(sys.argv[1]) as file:\n"
        "    print(av.__file__, sum(frame.samples for frame in file.decode(audio=0)))\n"
        "for name in ('libx264', 'libx265'):\n"
        "    try:\n"
        "        with av.open('/dev/null', 'w', format='mp4') as file:\n"
        "            stream = file.add_stream(name, rate=25, width=64, height=64, pix_fmt='yuv420p')\n"
        "            stream.encode(av.VideoFrame(64, 64, 'yuv420p'))\n"
        "    except av.FFmpegError:\n"
        "        print('no encoder')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.fspath(packages)}
    done = subprocess.run(
        [sys.executable, "-c", code, recording], capture_output=True, text=True, env=environment, check=True
    )
    path, n_samples, *refused = done.stdout.split(maxsplit=2)
    assert path.startswith(os.fspath(packages))
    assert abs(int(n_samples) - 2 * RATE) <= 2_048
    assert refused == ["no encoder\nno encoder\n"]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Give a folder with the root of a small Debian with Python and pip, as the image that the Dockerfile begins with has them."""
    programs = ("debootstrap", "unshare", "apt-get")
    if os.geteuid() != 0 or any(shutil.which(program) is None for program in programs):
        pytest.skip(f"the steps of an image run only as root, with {', '.join(programs)}")
    version = PROJECT["project"]["requires-python"].removeprefix(">=")
    release = platform.freedesktop_os_release()
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    root = tmp_path / "debian"
    packages = "ca-certificates,python3,python3-pip,python3-venv"
    subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            f"--include={packages}",
            release["VERSION_CODENAME"],
            root,
            sites.stdout.split()[0],
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (root / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
    # The steps reach the package index as this machine does.
    for file in {"/etc/resolv.conf", *filter(None, [os.environ.get("PIP_CERT")])}:
        (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / file[1:])
    found = run_in(root, "python --version", {}).split()[1]
    if not found.startswith(f"{version}."):
        pytest.skip(f"Debian's Python is {found}, and the image has {version}")
    try:
        yield root
    finally:
        # It is 10 GB in the end.
        shutil.rmtree(tmp_path)


def run_in(
    root: Path, command: str, environment: Mapping[str, str], *, user: str = "0:0", is_fixed: bool = False
) -> str:
    """Run a shell command in a root of its own, which only `/tmp` can be written of if it is fixed, and return what it prints."""
    fix = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount -t tmpfs tmpfs "$1/tmp" && '
    script = f'{fix if is_fixed else ""}mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && exec /usr/sbin/chroot --userspec="$2" "$1" sh -c "$3"'
    variables = {
        name: value for name, value in os.environ.items() if name.startswith("PIP_") and name != "PIP_CONSTRAINT"
    }
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, "sh", root, user, command],
        env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **variables, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3_000:]}{done.stderr[-3_000:]}"
    return done.stdout


def build(base: Path) -> tuple[dict[str, Path], dict[str, str], str]:
    """Run all steps of the Dockerfile, and return the root of each stage, the environment of the images, and their user."""
    roots: dict[str, Path] = {}
    environment: dict[str, str] = {}
    user = ""
    for name, stage in read_stages().items():
        roots[name] = root = base.with_name(name)
        subprocess.run(["cp", "-a", roots.get(stage.begins_with, base), root], check=True)
        folder = "/source" if stage.begins_with == "build" else "/"
        for instruction, words in stage.steps:
            if instruction == "RUN":
                run_in(root, f"cd {folder} && {words}", {})
            elif instruction == "WORKDIR":
                folder = words
                (root / folder[1:]).mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY":
                *sources, target = words.split()
                origin = ROOT
                if sources[0].startswith("--from="):
                    origin = roots[sources.pop(0).removeprefix("--from=")]
                place = root / (target if target.startswith("/") else f"{folder}/{target}").lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                if target.endswith("/"):
                    place.mkdir(exist_ok=True)
                # Links take no space, and nothing writes to these files.
                flags = (
                    ["-rT"] if origin == ROOT and not target.endswith("/") else ["-a"] if origin == ROOT else ["-alT"]
                )
                subprocess.run(["cp", *flags, *(origin / source.lstrip("/") for source in sources), place], check=True)
            elif instruction == "ENV":
                for pair in shlex.split(words):
                    variable, _, value = pair.partition("=")
                    environment[variable] = value.replace("$PATH", "/usr/local/bin:/usr/bin:/bin")
            elif instruction == "USER":
                user = words
            else:
                assert instruction in ("LABEL", "CMD")
    return roots, environment, user


@pytest.mark.torture
def test_the_steps_make_images_that_label(base: Path) -> None:
    """Each step runs in an empty root. Then, as user 1000 and in a root that is read-only, one image labels and the other one trains."""
    roots, environment, user = build(base)
    sizes = {}
    for name in ("label", "train"):
        archive = roots[name] / "archive"
        archive.mkdir()
        (archive / "call.m4a").write_bytes(encode(tone(2.0, RATE), RATE, "mp4", "aac"))
        (archive / "note.txt.wav").write_text("no sound")
        commands = "cd /tmp && emotion-batch label /archive /tmp/labels --workers 1 --json"
        summary = json.loads(run_in(roots[name], commands, environment, user=user, is_fixed=True))
        assert (summary["n_ok"], summary["n_failed"]) == (1, 1)
        libraries = [*(roots[name] / "opt" / "emotion-batch").glob("lib/*/site-packages/av.libs/libx26*")]
        assert len(libraries) == len(ENCODERS)
        assert all(path.stat().st_size < 50_000 for path in libraries)
        assert (roots[name] / "usr" / "share" / "doc" / "emotion-batch" / "THIRD_PARTY.md").exists()
        used = subprocess.run(["du", "-s", "--bytes", roots[name] / "opt"], capture_output=True, text=True, check=True)
        sizes[name] = int(used.stdout.split()[0]) / 1e9
    has_tensorflow = "python -c 'import importlib.util as u; print(u.find_spec(\"tensorflow\") is not None)'"
    found = {name: run_in(roots[name], has_tensorflow, environment, user=user).strip() for name in sizes}
    assert found == {"label": "False", "train": "True"}
    run_in(roots["train"], "cd /tmp && emotion-batch demo /tmp/demo --words 3", environment, user=user, is_fixed=True)
    # The sizes in the head of the Dockerfile.
    stated = [float(one) for one in re.findall(r"([\d.]+) GB", DOCKERFILE.read_text())]
    assert stated == pytest.approx([*sizes.values()], rel=0.15)
