"""Keep the records of finished runs in one archive, and take them out again: what a machine has
computed is not lost with it.

    python workflow/records.py keep e5 figures/e5/records.tar.xz
    python workflow/records.py restore figures/e5/records.tar.xz

An archive has settings, scores and predictions, no weights. The encoders that a profile trains
first are kept in an archive of their own, with their weights, for another machine would train
others:

    python workflow/records.py keep-encoders encoders figures/encoders/encoders.tar.xz

`restore` leaves finished runs that are there as they are, `keep` replaces no archive that has more
than it would write."""
import shutil
import sys

from s2dm.core import plain_errors, runs_dir
from s2dm.results import (
    collect, experiment, models_of, open_records, pack, save_records)

CHAIN = {"finetune", "evaluate", "analyse"} # each needs the reader that the first one leaves


def finished(runs, analysed=sys.maxsize): # analysed: how many seeds are
    """The runs whose work is done. The archive has no weights, so another machine trains a reader
    again that has not read and been analysed yet, and an S2DM again whose reader is not done."""
    done = runs[runs["finished"].astype(bool)]
    names = done.groupby(["model", "system", "seed"])["stage"].transform(" ".join).str.split()
    wanted = (done["seed"] < analysed).map({True: CHAIN, False: CHAIN - {"analyse"}})
    return done[[chain <= set(there) for chain, there in zip(wanted, names)]]


def keep(profile, path):
    "Archive every finished run of a profile's encoders."
    said = experiment(profile)
    results = collect(models_of(profile), runs_dir(), said["edition"])
    results.runs = finished(results.runs, said.get("analysed", sys.maxsize))
    save_records(results, runs_dir(), path, fewer=False)
    print(f"{len(results.runs)} finished runs are in {path}")


def keep_encoders(profile, path):
    "Archive the encoders that a profile trains and that are trained, with their records."
    from s2dm.encoder import scratch_folder # imports torch, which the other commands do without

    folders = [scratch_folder(name).parent for name in experiment(profile).get("encoders", {})]
    done = [folder for folder in folders if (folder / "metrics.json").is_file()]
    files = []
    for folder in done:
        files += [folder / "config.json", folder / "metrics.json"]
        files += sorted((folder / "checkpoint").iterdir())
    pack(files, runs_dir(), path)
    print(f"{len(done)} of {len(folders)} encoders are in {path}")


def restore(path):
    "Put an archive's records into the folder of runs; of a run that was only begun, all of them."
    count = 0
    with open_records(path) as root:
        begun = [file.parent for file in root.rglob("metrics.json")
                 if not (runs_dir() / file.relative_to(root)).exists()
                 and not (runs_dir() / file.parent.relative_to(root) / ".lock.holder").exists()]
        for file in sorted(f for f in root.rglob("*") if f.is_file()):
            place = runs_dir() / file.relative_to(root)
            if place.exists() and file.parent not in begun: continue
            place.parent.mkdir(parents=True, exist_ok=True)
            # with its time: Snakemake repeats what is older than what it was made from
            shutil.copy2(file, place)
            count += 1
    print(f"{count} files were restored to {runs_dir()}")


if __name__ == "__main__":
    commands = {"keep": (keep, 2), "keep-encoders": (keep_encoders, 2), "restore": (restore, 1)}
    command, *given = sys.argv[1:] or [""]
    if command not in commands or len(given) != commands[command][1]: sys.exit(__doc__)
    with plain_errors(): commands[command][0](*given)
