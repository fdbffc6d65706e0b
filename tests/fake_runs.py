"""Records as runs leave them, with made-up numbers: the formats of s2dm.evaluation, s2dm.pretrain
and of the analyses.
"""
from itertools import product
from pathlib import Path

import numpy as np

from s2dm.core import write_json
from s2dm.metrics import MLQA_LANGUAGES

LANGUAGES = (
    "svo", "svo_nadj", "svo_ndet", "svo_post", "svo_suffix", "svo_prenominal", "vso_case",
    "sov_case", "v2_bracket", "free_case")
SUBSETS = tuple(
    "_".join(("vgvae", *x))
    for x in ((), ("crl",), ("sdl",), ("wpl",), ("crl", "sdl"), ("crl", "wpl"), ("sdl", "wpl"),
              ("crl", "sdl", "wpl"), ("all",)))
MAIN = ("baseline", "s2dm_pos", "s2dm_sp", "s2dm_single_pos", "s2dm_single_sp", "s2dm_sp-untrained")
CONTROLS = ("s2dm_sp-trainable", "s2dm_sp-concat", "s2dm_sp-released", "s2dm_sp-refined")


def leave(root, stage, model, system, seed, metrics, **parameters):
    "config.json and metrics.json (None: the run did not end) of one run."
    folder = Path(root) / stage / model / system / f"seed{seed}"
    versions = dict(
        python="3.11.7", s2dm="0.1.0", torch="2.13.0+cpu", transformers="5.23.0", numpy="2.4.6")
    write_json(folder / "config.json", dict(
        parameters=dict(model=model, variant=system.split("-")[0], seed=seed, **parameters),
        seed=seed, git_revision="0c21ca465a7cc15df4a2f5fe801216fb29cb520b", versions=versions,
        device="cpu (x86_64, 2 cores)", started="2026-11-23T04:54:13+00:00", wall_time_s=61.5,
        peak_memory_mib=908.))
    if metrics is not None: write_json(folder / "metrics.json", metrics)
    return folder


def evaluation(rng, system, dataset, languages, source, gain):
    "metrics.json of 05_evaluate."
    rows, seed_effect = [], rng.normal(0, 2)
    for i, lang in enumerate(languages):
        em = (94.
              if lang == source
              else float(np.clip(62 - 4 * i + gain + seed_effect + rng.normal(0, 1), 0, 100)))
        f1 = min(100., em + 9)
        row = dict(dataset=dataset, context=lang, question=lang, questions=750)
        row |= dict(em=em, em_low=em - 3, em_high=em + 3, f1=f1, f1_low=f1 - 3, f1_high=f1 + 3)
        known = lang in MLQA_LANGUAGES
        rows.append(row | dict(em_mlqa=em + 1 if known else None, f1_mlqa=f1 if known else None))
    return dict(results=rows, missing=[], reader=dict(system=system, encoder="embedded"))


def _percent(rng, middle): return float(np.clip(middle + rng.normal(0, 1.5), 0, 100))


def _violations(about, percent): # a row with its counts
    count = round(5 * percent)
    percent = count / 5
    about |= dict(questions=500, violating=count, violating_near=count // 2)
    return about | dict(violations=percent, low=percent - 3, high=percent + 3)


TABLES = (
    "sts", "retrieval", "geometry", "constituents", "violations", "decoding", "boundaries",
    "probes", "predictability", "gradients")
TASKS = (
    ("token", "upos", "accuracy"), ("token", "depth", "spearman"), ("token", "distance", "uuas"),
    ("sentence", "language", "accuracy"), ("sentence", "content", "auc"))


def analysis(rng, system, dataset, languages, source, points=True):
    "metrics.json of 06_analyse."
    targets, s2dm = [lang for lang in languages if lang != source], system != "baseline"
    trained = s2dm and "untrained" not in system
    kinds = dict(mean=(55, 60, .5)) # STS, retrieval, silhouette of languages
    if s2dm: kinds["y"] = (76 if trained else 50, 90 if trained else 55, .2)
    if s2dm: kinds["z"] = (30 if trained else 45, 35, .4)
    tables = {name: [] for name in TABLES}
    for t, k in product(targets, kinds):
        p = _percent(rng, kinds[k][0])
        tables["sts"].append(dict(
            corpus=dataset, part=f"{source}-{t}", lang_a=source, lang_b=t, kind=k, pearson=p,
            pearson_low=p - 4, pearson_high=p + 4, spearman=p - 1, pairs=240))
    for t, k in product(targets, kinds):
        p = _percent(rng, kinds[k][1])
        tables["retrieval"].append(dict(
            corpus=dataset, lang=t, kind=k, to_source=p, from_source=p + 1, mean=p + .5))
    for k, (_, _, s) in kinds.items():
        tables["geometry"].append(dict(
            corpus=dataset, kind=k, silhouette_language=s + rng.normal(0, .01),
            silhouette_meaning=.6 - s, variance_1=.3, variance_2=.15))
    for t, of in product(languages, ("gold", "predicted")):
        p = _percent(rng, 88 + 3 * s2dm)
        tables["constituents"].append(dict(
            dataset=dataset, lang=t, parser="gold", of=of, questions=750,
            spans_constituent=100. if of == "gold" else p, low=p - 2, high=p + 2))
    for t in targets:
        about = dict(dataset=dataset, lang=t, reference="monolingual")
        tables["violations"].append(_violations(about, _percent(rng, 9 - 2 * s2dm)))
    for t in targets:
        tables["decoding"].append(dict(
            dataset=dataset, lang=t, questions=100, em=50., f1=60.,
            em_constituents=53. + rng.normal(), low=1., high=5.,
            f1_constituents=61.))
    for t in targets:
        tables["boundaries"].append(dict(
            dataset=dataset, lang=t, errors=300, boundary_errors=_percent(rng, 20),
            wrong_place=_percent(rng, 18)))
    for (level, task, metric), k in product(TASKS, kinds):
        of = "encoder" if (k, level) == ("mean", "token") else k
        tables["probes"].append(dict(
            level=level, task=task, of=of, metric=metric, score=float(rng.uniform(30, 95)),
            control=30., selectivity=20., chance=10.))
    for a, b in (("y", "z"), ("z", "y")) if s2dm else ():
        r2 = float(rng.uniform(10, 60))
        tables["predictability"].append({"from": a, "to": b, "r2": r2})
    losses = ("RL", "CRL", "SDL", "WPL", "POS", "STL_depth")
    modules = ("mu_y", "mu_z", "decoder")
    for edition, loss, module in product(("paper", "released", "refined"), losses, modules):
        norm = 0. if loss in ("POS", "STL_depth") and module == "mu_y" else 1.25
        tables["gradients"].append(dict(edition=edition, loss=loss, module=module, norm=norm))
    if points:
        spread = rng.normal(0, 1, (12, 2))
        tables["pca"] = [
            dict(
                corpus=dataset, kind=k, lang=t, group=g,
                x=float(spread[g, 0] + 3 * s * np.cos(i) + rng.normal(0, .1)),
                y=float(spread[g, 1] + 3 * s * np.sin(i)))
            for k, (_, _, s) in kinds.items()
            for i, t in enumerate(languages)
            for g in range(12)]
    return dict(tables=tables, missing=[])


def fake_runs(
        root, systems=MAIN, seeds=3, model="small", dataset="synthetic", languages=LANGUAGES,
        source="svo"):
    "Stages 03 to 06 of some systems and seeds."
    for n, system in enumerate(systems):
        for seed in range(seeds):
            rng = np.random.default_rng([seed, n])
            leave(root, "pretrain", model, system, seed, dict(examples=100, steps=10, missing=[]))
            leave(root, "finetune", model, system, seed, dict(questions=100, steps=10))
            leave(
                root, "evaluate", model, system, seed,
                evaluation(rng, system, dataset, languages, source, .5 * (n % 5)),
                datasets=[dataset])
            if not system.startswith("vgvae"):
                leave(
                    root, "analyse", model, system, seed,
                    analysis(rng, system, dataset, languages, source, points=seed == 0))
    return Path(root)
