"""What settings of an edition do: writes
figures/small/editions_{levels,concentration}.{csv,md,tex}.

    python experiments/editions.py [concentration] [levels]

The encoder `small` and its generated text, one pass over the training pairs per row. Everything is
measured on held-out (dev) text:

- y, z: Pearson's correlation of the cosine of y (of z) with the scores of generated pairs, in
  percent. That of y selects models.
- retrieval: sentences whose translation has the most similar y among all dev sentences of its
  language, in percent.
- WPL, POS, depth, distance: what the loss costs more if its network gets zeros instead of z, per
  word (pair of words) of a sentence; nats, or edges of the tree.
- kappa: the concentration of y at the subwords, least, mean and greatest.

A row that the csv has is not measured again.
"""
import argparse
from dataclasses import replace
from tempfile import TemporaryDirectory

import pandas as pd
import torch
import torch.nn.functional as F

from s2dm.core import plain_errors, project_root, seed_everything
from s2dm.encoder import FeatureCache, load_encoder
from s2dm.fit import fit
from s2dm.model import S2DM, S2DMConfig
from s2dm.plots import save_table
from s2dm.pretrain import PretrainConfig, model_settings, selection_data, training_data
from s2dm.siamese import PairData, Siamese
from s2dm.synthetic import Synthetic
from s2dm.vectors import TextVectors, sts_correlations

HEADS = dict(WPL="WPL", POS="POS", STL_depth="depth", STL_distance="distance")
LEAST = (0, 10, 50, 100) # kappa_min, with KL_y at the released code's weight
WEIGHTS = (0.0, 0.001, 0.1) # of KL_y, with the kappa_min that is best so
CLOSE = [(0, 0.01), (10, 0.01), (0, 0.001)] # what two seeds do not tell apart: two seeds more
LEVELS = ("states", "embeddings")
VARIANTS = ("s2dm_sp", "s2dm_pos")


def trained(config: PretrainConfig, folder: str) -> tuple[TextVectors, PairData, dict]:
    """A model trained as the run 03_pretrain does it, held-out pairs, and the correlations that
    select it."""
    encoder = load_encoder(config.model, "cpu")
    cache = FeatureCache(encoder, config.cache_precision)
    wanted = model_settings(config, encoder)
    embeddings = wanted.e_level == "embeddings"
    data = training_data(config, cache, wanted.losses, wanted.paired, embeddings)
    seed_everything(config.seed)
    siamese = Siamese(S2DM(wanted))
    vectors = TextVectors(encoder, siamese.model, cache)
    dev = selection_data(config)
    def evaluate():
        return {
            kind: pearson
            for kind, (pearson, _) in sts_correlations(vectors, dev, ("y", "z")).items()}
    found = fit(
        siamese, data, config, folder, weights=wanted.weights, evaluate=evaluate, metric="y")
    held_out = PairData(Synthetic().pairs("dev"), cache, wanted.losses, 50, embeddings=embeddings)
    best = found.evaluations.loc[found.evaluations["step"] == found.best_step].iloc[-1]
    return vectors, held_out, dict(steps=found.steps, y=100 * best["y"], z=100 * best["z"])


@torch.no_grad()
def cost_of_zero(model: S2DM, pairs: PairData) -> dict[str, float]:
    "What each syntactic loss costs more without z, per word of a sentence (per pair of words)."
    means = S2DM(S2DMConfig(**model.config.as_dict() | dict(reduction="mean"))).eval()
    means.load_state_dict(model.state_dict())
    names = [name for name in HEADS if name in model.config.losses]
    total = dict.fromkeys(names, 0.)
    torch.manual_seed(0)
    for positions in pairs.plan(0):
        batch = pairs.load(positions)
        latents = means(batch["h"], batch["mask"])
        tokens = None if latents.z_tokens is None else torch.zeros_like(latents.z_tokens)
        zero = replace(latents, z=torch.zeros_like(latents.z), z_tokens=tokens)
        with_z, without = means.loss_terms(batch, latents), means.loss_terms(batch, zero)
        for name in names: total[name] += (without[name] - with_z[name]).sum().item()
    return {HEADS[name]: value / (2 * len(pairs)) for name, value in total.items()}


@torch.no_grad()
def concentration(model: S2DM, pairs: PairData) -> dict[str, float]:
    "Least, mean and greatest concentration of y at the subwords."
    values = []
    for positions in pairs.plan(0):
        batch = pairs.load(positions)
        values.append(model.posteriors(batch["h"], batch["mask"]).kappa[batch["mask"]])
    kappa = torch.cat(values)
    return dict(
        kappa_least=kappa.min().item(), kappa_mean=kappa.mean().item(),
        kappa_greatest=kappa.max().item())


def retrieval(vectors: TextVectors) -> float:
    """Percent of dev sentences whose translation into or from the source is the nearest of its
    language."""
    corpus = Synthetic()
    def directions(lang):
        return F.normalize(
            torch.as_tensor(vectors.semantic(corpus.sentences("dev", [lang])["forms"][:])), dim=-1)
    source, right = directions(corpus.source), []
    for lang in corpus.targets:
        similarity = source @ directions(lang).T
        place = torch.arange(len(similarity))
        right += [similarity.argmax(1) == place, similarity.argmax(0) == place]
    return 100 * torch.cat(right).double().mean().item()


def measured(edition: str, variant: str, seed: int, **overrides) -> dict[str, float]:
    "All measures of one trained model."
    settings = [f"{name}={value}" for name, value in overrides.items()]
    config = PretrainConfig(
        model="small", edition=edition, variant=variant, seed=seed, overrides=settings)
    with TemporaryDirectory() as folder:
        vectors, pairs, found = trained(config, folder)
        model = vectors.model.eval()
        return (found | dict(retrieval=retrieval(vectors)) | cost_of_zero(model, pairs)
                | concentration(model, pairs))


def table(name: str, jobs: list[dict], measures: tuple[str, ...]) -> pd.DataFrame:
    "Measure what is missing, one row per job, and write the table after each."
    folder = project_root() / "figures" / "small"
    file = folder / f"{name}.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    def row_of(job):
        return next(
            (row for row in rows if all(row[key] == value for key, value in job.items())), None)
    def write():
        ordered = [row for row in map(row_of, jobs) if row]
        found = pd.DataFrame(ordered + [row for row in rows if row not in ordered])
        columns = [*jobs[0], *(column for column in measures if column in found)]
        save_table(found[columns].round(4).replace(-0.0, 0.0), name, folder, digits=3)
        return found
    for job in jobs:
        if row_of(job): continue
        rows.append(job | measured(**job))
        print(rows[-1], flush=True)
        write()
    return write()


def concentration_jobs(settings: list[tuple], seeds: tuple[int, ...]) -> list[dict]:
    "A job for each pair of kappa_min and weight_KL_y, and each seed."
    return [
        dict(edition="refined", variant="s2dm_sp", kappa_min=k, weight_KL_y=w, seed=s)
        for k, w in settings
        for s in seeds]


@plain_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", default=["concentration", "levels"])
    tables = parser.parse_args().tables
    torch.set_num_threads(1)
    if "concentration" in tables:
        measures = ("y", "retrieval", "kappa_least", "kappa_mean", "kappa_greatest")
        jobs = concentration_jobs([(k, 0.01) for k in LEAST], (0, 1))
        found = table("editions_concentration", jobs, measures)
        found = found[(found["weight_KL_y"] == 0.01) & (found["seed"] < 2)]
        best = int(found.groupby("kappa_min")["y"].mean().idxmax())
        jobs += concentration_jobs([(best, w) for w in WEIGHTS], (0, 1))
        # the same without a bound
        jobs += concentration_jobs([(0, w) for w in WEIGHTS if w < 0.01], (0, 1))
        jobs += concentration_jobs(CLOSE, (2, 3))
        table("editions_concentration", jobs, measures)
    if "levels" in tables:
        seeds = dict(refined=(0, 1), paper=(0,))
        systems = [(edition, variant) for edition in seeds for variant in VARIANTS]
        jobs = []
        for edition, variant in systems:
            jobs += [
                dict(edition=edition, variant=variant, e_level=level, seed=s)
                for level in LEVELS
                for s in seeds[edition]]
        table("editions_levels", jobs, ("y", "z", "retrieval", "WPL", "POS", "depth", "distance"))


if __name__ == "__main__": main()
