"""Time to generate the default synthetic corpus, kind by kind, on one core, and how much there is
of it.

Target: under 30 s of one core for all kinds. Seconds are of the processor, since the machine may be
shared.
Usage: python benchmarks/bench_synthetic.py
"""
import tempfile
import time
from collections import Counter
from pathlib import Path

from s2dm.synthetic import KINDS, SyntheticConfig, generate


def main():
    with tempfile.TemporaryDirectory() as name:
        folder, total = Path(name), 0
        for kind in KINDS:
            start = time.process_time()
            generate(SyntheticConfig(), folder, [kind])
            spent = time.process_time() - start
            total += spent
            print(
                f"{kind:12}{spent:6.1f} s "
                f"{sum(f.stat().st_size for f in (folder / kind).rglob('*.*')) / 1e6:8.1f} MB")
        print(f"{'all':12}{total:6.1f} s")
        # not those with passages and questions apart
        for file in sorted((folder / "text/train").glob("*[!s].txt")):
            words = Counter(file.read_text().replace(".", " .").replace("?", " ?").split())
            print(f"{file.stem:16}{sum(words.values()):9,} tokens {len(words):5} types")


if __name__ == "__main__":
    main()
