"""Build llama-server and llama-batched-bench, the peers of `python -m benchmarks engine`.

    python -m tools.build_llama_peers                    # into ~/.cache/keepwarm-peers
    python -m tools.build_llama_peers --sdist llama_cpp_python-0.3.36.tar.gz

llama-cpp-python's source package carries the whole of llama.cpp. Its server and its benchmark are compiled from there
and linked with the very libraries that llama-cpp-python has installed here, so that both sides of a comparison compute
with the same code. Needs pip, cmake, ninja, a C++ compiler, and about ten minutes of two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llama-cpp-python"
PEERS = Path.home() / ".cache" / "keepwarm-peers"
TARGETS = ("llama-server", "llama-batched-bench")


def main() -> None:
    """Download, unpack, configure, build."""
    options = _options()
    folder: Path = options.to.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sources = _unpacked(options.sdist or download_sources(folder), folder)
    found = find_spec("llama_cpp")
    if found is None or found.origin is None:
        sys.exit(f"{PACKAGE} is not installed here: run `make set-up-dev` first.")
    libraries = Path(found.origin).parent / "lib"
    build = folder / "build"
    configure = [
        *("cmake", "-S", str(Path(__file__).parent / "llama_peers"), "-B", str(build), "-G", "Ninja"),
        *("-DCMAKE_BUILD_TYPE=Release", f"-DLLAMA_SOURCES={sources}", f"-DLLAMA_LIBRARIES={libraries}"),
        *("-DLLAMA_OPENSSL=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
    ]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(build), "--target", *TARGETS], check=True)
    for target in TARGETS:
        print(build / "bin" / target)


def download_sources(folder: Path) -> Path:
    """The source package of the installed version."""
    name = f"{PACKAGE.replace('-', '_')}-{version(PACKAGE)}.tar.gz"
    if not (folder / name).exists():
        asked = f"{PACKAGE}=={version(PACKAGE)}"
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "-d", str(folder), asked]
        subprocess.run(pip, check=True)
    return folder / name


def _unpacked(sdist: Path, folder: Path) -> Path:
    """Where its llama.cpp is."""
    sources = folder / sdist.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    if not sources.exists():
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
    return sources


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=Path, default=PEERS, help=f"folder to build in (default: {PEERS})")
    parser.add_argument("--sdist", type=Path, help="source package that is here already, instead of downloading it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
