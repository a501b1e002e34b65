"""Metadata, dependencies and the mapping of folders to packages."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

EXTRAS = {
    "plot": ["matplotlib>=3.8"],
    "xarray": ["xarray>=2024.1", "h5netcdf>=1.3"],
    "dask": ["dask>=2025.1", "distributed>=2025.1"],
    "bench": ["jax>=0.4.30", "torch>=2.4"],
    # numba-cuda cannot compile beside NumPy 2.5. Every driver of CUDA 13 reads what the toolkit of 13.0 makes.
    "cuda12": ["numba-cuda[cu12]>=0.30,<0.31", "cupy-cuda12x[ctk]>=14,<15", "numpy<2.5"],
    "cuda13": [
        "numba-cuda[cu13]>=0.30,<0.31",
        "cupy-cuda13x[ctk]>=14,<15",
        "cuda-toolkit==13.0.*",
        "cuda-bindings==13.0.*",
        "nvidia-nvjitlink==13.0.*",
        "numpy<2.5",
    ],
}

# Simulates and compiles kernels for devices that are not there. The CUDA libraries exist for these machines only.
DEVICE_TESTS = [
    f"{name}; sys_platform == 'linux'"
    for name in (
        "numba-cuda>=0.30,<0.31",
        "cuda-bindings==13.0.*",
        "nvidia-cuda-nvrtc==13.0.*",
        "nvidia-nvjitlink==13.0.*",
        "nvidia-nvvm==13.0.*",
        "nvidia-cuda-nvcc==13.0.*",
        "nvidia-cuda-cuobjdump>=13.2,<14",
        "nvidia-cuda-nvdisasm>=13.2,<14",
        "numpy<2.5",
    )
]
EXTRAS["test"] = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "mpmath>=1.3",
    "coverage>=7.6",
    *DEVICE_TESTS,
    *EXTRAS["plot"],
    *EXTRAS["xarray"],
    *EXTRAS["dask"],
]

setup(
    name="catapult-fast",
    version="0.1.0",
    description="Exact, compiled sweeps of deep-learning models at large learning rates",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The catapult_fast developers",
    license="BSD-3-Clause",
    license_files=["LICENSE", "catapult_fast/datasets/LICENSE.fashion-mnist"],
    python_requires=">=3.11,<3.14",
    install_requires=[
        "numba>=0.68,<0.69",
        "numpy>=2.0",
        "h5py>=3.12",
        "scipy>=1.15",
        "tqdm>=4.66",
        "click>=8.1",
        "pydantic>=2.7",
        "tomli-w>=1.0",
        "filelock>=4.2",
        "threadpoolctl>=3.5",
    ],
    extras_require=EXTRAS,
    packages=[
        "catapult_fast",
        "catapult_fast.bench",
        "catapult_fast.datasets",
        "catapult_fast.kernels",
        "catapult_fast.kernels.blocks",
        "catapult_fast.kernels.dense",
        "catapult_fast.kernels.lanczos",
        "catapult_fast.kernels.linear",
        "catapult_fast.kernels.one_sample",
    ],
    package_dir={"catapult_fast": "catapult_fast", "catapult_fast.bench": "bench", "catapult_fast.kernels": "kernels"},
    package_data={"catapult_fast": ["py.typed"], "catapult_fast.datasets": ["*.npz", "LICENSE*", "README.md"]},
    entry_points={"console_scripts": ["catapult-fast = catapult_fast.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Physics",
        "Typing :: Typed",
    ],
)
