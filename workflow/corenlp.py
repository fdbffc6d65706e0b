"""Parse the contexts of the corpora that are not parsed yet, with a CoreNLP server of one's own.

    S2DM_CORENLP=folder/of/jars python workflow/corenlp.py --language en

The server is started from the jar files in $S2DM_CORENLP, or `--address` names one that runs; it is
waited for until its models are loaded. What is parsed is kept at once, so the script may be stopped
and started again. A server that dies is started anew, or waited for, twice at most. Texts that it
cannot parse are named, and the exit status is 1."""
import argparse
import contextlib
import sys

from s2dm.core import MissingData, plain_errors
from s2dm.parsers import CoreNLP, corenlp, corenlp_server, fill, kept, wait_until_ready
from s2dm.reading import READING, load_reading

ATTEMPTS = 3


def contexts(datasets, language):
    "The contexts of the corpora that have the language, once each."
    texts = {}
    for name in datasets:
        if language not in READING[name][0]: continue
        try: texts |= dict.fromkeys(load_reading(name, language)["context"][:])
        except MissingData as error: print(f"{name} is left out: {str(error).splitlines()[0]}")
    return list(texts)


@contextlib.contextmanager
def running(chosen):
    "The address of a server that is ready."
    if not chosen.address:
        with corenlp_server(None, chosen.language, chosen.memory, chosen.wait) as address:
            yield address
        return
    if not wait_until_ready(chosen.address, chosen.wait):
        raise MissingData(f"no CoreNLP server is ready at {chosen.address} within "
                          f"{chosen.wait:g} s; start one (docs/parsers.md), or leave out --address")
    yield chosen.address


def parse(texts, chosen):
    "What could not be parsed; another server is started, or waited for, if one dies."
    for attempt in range(1, ATTEMPTS + 1):
        with running(chosen) as address:
            parser = kept(CoreNLP(address, chosen.language), chosen.language)
            try: return fill(parser, texts)
            except MissingData as error:
                if attempt == ATTEMPTS: raise
                print(f"{error}; attempt {attempt + 1} of {ATTEMPTS}", flush=True)


def main(chosen):
    texts = contexts(chosen.datasets.split(","), chosen.language)
    missing = corenlp(chosen.language).missing(texts)[:chosen.limit]
    print(f"{chosen.language}: {len(texts)} contexts, {len(missing)} to parse", flush=True)
    problems = parse(missing, chosen) if missing else []
    for problem in problems: print(problem, file=sys.stderr)
    print(f"parsed {len(missing) - len(problems)} of {len(missing)}")
    return bool(problems)


if __name__ == "__main__":
    plain = argparse.RawTextHelpFormatter
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    asked.add_argument("--language", default="en")
    asked.add_argument("--datasets", default="xquad,tydiqa,bipar,mlqa")
    asked.add_argument("--address", default="", help="of a server that runs")
    asked.add_argument("--memory", default="4g", help="of Java")
    asked.add_argument("--wait", type=float, default=600, help="seconds for loading the models")
    asked.add_argument("--limit", type=int, help="texts at most")
    with plain_errors(): sys.exit(main(asked.parse_args()))
