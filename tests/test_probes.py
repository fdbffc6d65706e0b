"""Probes: closed forms, ranks, trees and scores against outside oracles; what a probe can find and
what it cannot. And geometry: silhouettes, components and intervals against their definitions.
"""
import networkx
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from s2dm.core import DataError, ParameterError
from s2dm.encoder import FeatureCache
from s2dm.geometry import (
    geometry_tables, parallel_xnli, pca, pearson_interval, retrieval_rows, silhouette, sts_table)
from s2dm.probes import (
    ProbeData, classify, content_words, control_labels, dependent_first, majority, predictability,
    probe_data, probe_table, r_squared, ranks, ridge, roc_area, spanning_trees, spearman,
    squared_distances, structural_probe, tree_probes, tree_scores, trees)
from s2dm.synthetic import Synthetic, SyntheticConfig
from s2dm.toy import toy_encoder, toy_s2dm
from s2dm.treebanks import split_groups
from s2dm.vectors import KINDS


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# closed forms

def test_ridge_is_the_solution_of_its_normal_equations():
    x, y = normal(60, 4) * torch.tensor([1., 5, .1, 2]) + 3, normal(60, 2, seed=1)
    a = (x - x.mean(0)) / x.std(0, correction=0)
    stacked = torch.cat([a, (60 * .1)**.5 * torch.eye(4)])
    weight = torch.linalg.lstsq(stacked, torch.cat([y - y.mean(0), torch.zeros(4, 2)])).solution
    assert torch.allclose(ridge(x, y, x), a @ weight + y.mean(0))
    # scale does not matter
    assert torch.allclose(ridge(x * 1e4 - 7, y, x[:5] * 1e4 - 7), ridge(x, y, x[:5]))
    assert ridge(torch.zeros(3, 2), y[:3], torch.ones(1, 2)).isfinite().all()
    with pytest.raises(ParameterError): ridge(x[:0], y[:0], x)


def test_discriminants_are_bayes_optimal_for_normal_classes():
    rng = np.random.default_rng(0)
    means, cov = np.array([[0, 0], [2, 0], [4, 0.]]), np.array([[1, .8], [.8, 1.]])
    labels = rng.choice(["a", "b", "c"], 6000, p=[.5, .3, .2])
    x = means[np.searchsorted(["a", "b", "c"], labels)] + rng.multivariate_normal([0, 0], cov, 6000)
    best = np.stack(
        [scipy.stats.multivariate_normal(m, cov).logpdf(x[3000:]) + np.log(p)
         for m, p in zip(means, (.5, .3, .2))],
        1).argmax(1)
    found = classify(torch.from_numpy(x[:3000]), labels[:3000], torch.from_numpy(x[3000:]))
    assert abs(np.mean(found == labels[3000:]) - np.mean(
        np.array(["a", "b", "c"])[best] == labels[3000:])) < .01
    assert np.mean(found == np.array(["a", "b", "c"])[best]) > .97


def test_degenerate_classes():
    # nothing to see: the largest
    assert (classify(torch.zeros(4, 3), np.array(["a", "a", "a", "b"]), torch.zeros(2, 3)).tolist()
            == ["a", "a"])
    assert classify(torch.ones(2, 3), np.array(["a", "a"]), torch.zeros(1, 3)).tolist() == ["a"]
    assert majority(np.array([1, 1, 2]), np.array([1, 2, 2])) == pytest.approx(100 / 3)
    assert r_squared(torch.ones(3, 1), torch.ones(3, 1)) == 0
    assert r_squared(torch.zeros(4, 1), normal(4, 1) + 9) < 0


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9), st.lists(
    st.integers(-3, 3), min_size=9, max_size=9))
def test_ranks_and_spearman(x, y):
    n = len(x)
    padded = torch.tensor([x + [0] * (9 - n)], dtype=torch.float64)
    mask = torch.tensor([[True] * n + [False] * (9 - n)])
    assert ranks(padded, mask)[0, :n].tolist() == scipy.stats.rankdata(x).tolist()
    if len(set(x)) < 2 or len(set(y[:n])) < 2: return
    assert (spearman(padded, torch.tensor([y], dtype=torch.float64), mask).item()
            == pytest.approx(scipy.stats.spearmanr(x, y[:n]).statistic))


@given(st.integers(0, 10**6))
def test_spanning_trees_are_minimal(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 8, size=3)
    d = torch.from_numpy(rng.uniform(size=(3, 8, 8)))
    d, mask = d + d.mT, torch.arange(8) < torch.from_numpy(sizes)[:, None]
    found = spanning_trees(d, mask)
    for n, distance, tree in zip(sizes, d, found):
        graph = networkx.from_numpy_array(distance[:n, :n].numpy() * (1 - np.eye(n)))
        expected = networkx.minimum_spanning_tree(graph).size("weight")
        assert (tree == tree.T).all() and tree.sum() == 2 * (n - 1) and not tree[n:].any()
        assert float(distance[tree].sum() / 2) == pytest.approx(expected)


def test_roc_area_with_ties():
    scores = np.array([[1, 5], [2, 5], [2, 5], [3, 5]], float)
    gold = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    u = scipy.stats.mannwhitneyu(scores[gold[:, 0] == 1, 0], scores[gold[:, 0] == 0, 0]).statistic
    assert (roc_area(torch.from_numpy(scores[:, :1]), torch.from_numpy(gold[:, :1]))
            == pytest.approx(100 * u / 4))
    assert (roc_area(torch.from_numpy(scores), torch.from_numpy(gold))
            == pytest.approx((100 * u / 4 + 50) / 2))
    # the first column has one class only
    assert roc_area(
        torch.from_numpy(scores),
        torch.tensor([[0, 1]] * 4) * torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1]])) == 50


# splits and controls

@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30).filter(lambda g: len(set(g)) > 1),
    st.floats(0.01, .99))
def test_no_group_is_on_both_sides(groups, part):
    train = split_groups(groups, part)
    assert not set(np.array(groups)[train]) & set(np.array(groups)[~train])
    assert train.any()
    assert not train.all()


def test_control_labels_are_those_of_types():
    types = np.random.default_rng(0).integers(50, size=5000).astype(str)
    labels = np.random.default_rng(1).choice(["N", "V"], 5000, p=[.9, .1])
    found = control_labels(types, labels)
    assert pd.Series(found).groupby(types).nunique().eq(1).all()
    assert (found == control_labels(types, labels)).all()
    assert (found != control_labels(types, labels, 1)).any()
    assert .7 < np.mean(found == "N") <= 1


# structural probes

def bank(n=40, seed=0): # chains and stars, so that depths and distances are known
    rng, rows = np.random.default_rng(seed), []
    for g in range(n):
        k = int(rng.integers(3, 8))
        heads = [0] + ([*range(1, k)] if g % 2 else [1] * (k - 1))
        rows.append(dict(
            group=f"{g // 2}", lang="xx", forms=[f"w{i}" for i in rng.integers(40, size=k)],
            upos=["NOUN"] * (k - 1) + ["PUNCT" if g % 3 == 0 else "VERB"], heads=heads,
            deprels=["dep"] * k, depths=[0] + ([*range(1, k)] if g % 2 else [1] * (k - 1))))
    return Dataset.from_list(rows)


def data_of(sentences, words): # kind -> [W,d]
    start = np.cumsum([0, *map(len, sentences["forms"][:])])
    means = {
        ("mean" if k == "encoder" else k): torch.stack(
            [x[a:b].mean(0) for a, b in zip(start, start[1:])])
        for k, x in words.items()}
    return ProbeData(sentences, words, means, start, split_groups(sentences["group"][:]))


def test_trees_leave_punctuation_out():
    data = data_of(bank(), {"y": torch.zeros(sum(map(len, bank()["forms"][:])), 2)})
    real, control = trees(data)
    n = real.mask.sum(1)
    assert n.min() >= 3
    assert (real.distance[real.mask[:, :, None] & real.mask[:, None]] == 0).sum() == n.sum()
    assert torch.equal(control.mask, real.mask)
    assert control.distance.max() <= 3
    assert (control.distance == control.distance.mT).all()
    words = [sum(tag != "PUNCT" for tag in tags) for tags in data.sentences["upos"][:]]
    assert real.train.sum() == sum(n >= 3 and train for n, train in zip(words, data.train))
    with pytest.raises(ParameterError, match="no sentence of 3 to 2"): trees(data, longest=2)


def test_perfect_and_useless_distances():
    data = data_of(bank(), {"y": torch.zeros(sum(map(len, bank()["forms"][:])), 2)})
    t, _ = trees(data)
    perfect = tree_scores(t, t.depth, t.distance)
    useless = tree_scores(t, -t.depth, torch.zeros_like(t.distance))
    assert perfect == pytest.approx(dict(depth=100, distance=100, uuas=100))
    assert useless["depth"] == pytest.approx(-100)
    assert useless["distance"] == 0


def test_a_probe_finds_trees_that_are_there():
    """Coordinates in which squared distances are tree distances: one dimension for each edge above
    a word; in noise there are none."""
    sentences, rows = bank(120), []
    for heads in sentences["heads"][:]:
        up = {1: []} | {}
        for i, h in enumerate(heads, 1):
            if h: up[i] = [*up[h], i]
        rows += [[float(j in up[i]) for j in range(2, 9)] for i in range(1, len(heads) + 1)]
    good = torch.tensor(rows) @ normal(7, 12, seed=3).float() # mixed, and with more dimensions
    data = data_of(sentences, dict(encoder=good, y=normal(len(rows), 12).float()))
    table = pd.DataFrame(tree_probes(data)).set_index(["task", "metric", "of"])
    score = table["score"]
    # equal distances: any order of noise
    assert score["distance", "uuas", "encoder"] > 95
    assert score["distance", "spearman", "encoder"] > 80
    assert score["depth", "spearman", "encoder"] > 80
    assert score["distance", "uuas", "y"] < 60 and abs(score["distance", "spearman", "y"]) < 30
    assert (table["selectivity"] == table["score"] - table["control"]).all()


def test_probe_recovers_a_metric():
    x, true = normal(50, 6, 5).float(), normal(5, 2, seed=1).float()
    mask = torch.ones(50, 6, dtype=torch.bool)
    B = structural_probe(x, mask, squared_distances(x @ true), 3, 60, penalty=0)
    assert torch.allclose(B @ B.T, true @ true.T, atol=.05)
    assert torch.equal(B, structural_probe(x, mask, squared_distances(x @ true), 3, 60, penalty=0))
    assert torch.allclose(squared_distances(x), torch.cdist(x, x).square(), atol=1e-4)


# sentences

def test_what_stands_first():
    rows = Dataset.from_list([
        dict(deprels=["obj", "root"], heads=[2, 0]),
        dict(deprels=["root", "obj:x", "obj"], heads=[0, 1, 1]), dict(deprels=["root"], heads=[0])])
    assert dependent_first(rows, ("obj",)).tolist() == [1, 0, -1]


def test_content_is_that_of_the_source():
    rows = [
        dict(
            group=str(g), lang=lang,
            forms=["The", "Dog" if g % 2 else "cat"] if lang == "en" else ["der", "Hund"],
            upos=["DET", "NOUN"])
        for g in range(20)
        for lang in ("en", "de")]
    found = content_words(Dataset.from_list([*rows, dict(rows[1], group="alone")]), "en")
    assert found.shape == (41, 2)
    assert (found[0:40:2] == found[1:40:2]).all()
    assert (found[:40].sum(1) == 1).all()
    assert (found[-1] == -1).all()
    with pytest.raises(ParameterError, match="source"): content_words(Dataset.from_list(rows), "fr")
    with pytest.raises(ParameterError, match="no content word"):
        content_words(Dataset.from_list(rows), "en", least=15)


# from the encoder to the table

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A random encoder and S2DM, and a few generated sentences."
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    patch = pytest.MonkeyPatch()
    patch.setenv("S2DM_DATA", str(tmp_path_factory.mktemp("data")))
    sentences = Synthetic(
        SyntheticConfig(languages=("svo", "sov_case", "vso_case"), sentences=400)).sentences("dev")
    maker = BertWordPieceTokenizer(lowercase=False)
    maker.train_from_iterator(sentences["text"][:], vocab_size=300, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=maker._tokenizer, do_lower_case=False)
    encoder = toy_encoder(tokenizer)
    model = toy_s2dm(vocabulary=300, latent_width=10).eval()
    yield encoder, model, sentences, FeatureCache(
        encoder, "float32", tmp_path_factory.mktemp("features"))
    patch.undo()


def test_vectors_of_words_are_those_of_their_first_subwords(tiny):
    encoder, model, sentences, cache = tiny
    data = probe_data(sentences, cache, model)
    assert len(data.sentences) == len(sentences)
    assert data.start[-1] == sum(map(len, sentences["forms"][:]))
    for i in (0, 7, 50):
        f = cache[cache.encode([sentences["forms"][i]])[0]]
        mask = torch.ones(1, len(f.ids), dtype=torch.bool)
        y = model.semantic(f.h[None], mask, "token")[0]
        rows = slice(data.start[i], data.start[i + 1])
        assert torch.allclose(data.words["y"][rows], y[f.first], atol=1e-5)
        assert torch.allclose(data.words["encoder"][rows], f.h[f.first], atol=1e-5)
        assert torch.allclose(data.means["y"][i], model.semantic(f.h[None], mask)[0], atol=1e-5)
        assert torch.allclose(data.means["mean"][i], f.h.mean(0), atol=1e-5)
    assert set(probe_data(sentences, cache).words) == {"encoder"}


def test_sentences_that_are_cut_off_are_left_out(tiny):
    encoder, model, sentences, cache = tiny
    long = dict(
        sentences[0], forms=["Anna"] * 200, upos=["PROPN"] * 200, heads=[0] + [1] * 199,
        deprels=["dep"] * 200, depths=[0] + [1] * 199)
    data = probe_data(Dataset.from_list([sentences[0], long, sentences[1]]), cache, model)
    assert data.sentences["forms"][:] == [sentences[0]["forms"], sentences[1]["forms"]]


def test_the_whole_table_is_the_same_twice(tiny):
    encoder, model, sentences, cache = tiny
    a, b = (probe_table(probe_data(sentences, cache, model), "svo") for _ in range(2))
    assert a.equals(b)
    assert np.isfinite(a[["score", "control", "selectivity", "chance"]].to_numpy()).all()
    assert (list(a)[:8]
            == ["level", "task", "of", "metric", "score", "control", "selectivity", "chance"])
    assert not a.duplicated(["level", "task", "of", "metric"]).any()
    assert set(a["of"]) == {"encoder", "mean", "y", "z"}
    assert {"upos, unseen", "object, unseen", "content, unseen"} <= set(a["task"])
    accuracy = a[a["metric"] == "accuracy"]
    # chance: 33
    assert accuracy["score"].between(0, 100).all()
    assert (a.set_index(["task", "of"]).loc[("language", "mean"), "score"] > 50).all()
    found = predictability(probe_data(sentences, cache, model))
    assert len(found) == 8
    assert (found["r2"] <= 100).all()
    assert set(found["to"]) == {"y", "z", "y, words", "z, words"}


# geometry

def by_definition(x, groups): # Rousseeuw's silhouette, point by point
    x = torch.nn.functional.normalize(x.double(), dim=-1)
    distance, out = (1 - x @ x.T).clamp(min=0).numpy(), []
    for i, g in enumerate(groups):
        others = {h: [j for j, k in enumerate(groups) if k == h and j != i] for h in set(groups)}
        if not others[g]:
            out.append(0)
            continue
        a = distance[i, others[g]].mean()
        b = min(distance[i, rows].mean() for h, rows in others.items() if h != g)
        out.append((b - a) / max(a, b) if max(a, b) > 1e-12 else 0)
    return np.mean(out)


@given(st.integers(0, 10**6), st.integers(4, 14), st.integers(2, 4))
def test_silhouette_is_its_definition(seed, n, k):
    rng = np.random.default_rng(seed)
    groups = [*range(k), *rng.integers(k, size=n - k).tolist()] # some may be alone
    x = torch.from_numpy(rng.normal(size=(n, 5)))
    assert silhouette(x, groups) == pytest.approx(by_definition(x, groups), abs=1e-9)
    assert (silhouette(3 * x, [f"g{g}" for g in groups])
            == pytest.approx(silhouette(x, groups), abs=1e-9))


def test_silhouette_of_the_same_points():
    assert silhouette(torch.ones(6, 3), [0, 0, 1, 1, 2, 2]) == 0
    x = torch.eye(3).repeat(2, 1)
    assert silhouette(x, [0, 1, 2] * 2) == pytest.approx(1) and silhouette(x, [0] * 3 + [1] * 3) < 0
    for groups in ([0, 0, 0, 0, 0, 0], [0, 1]):
        with pytest.raises(ParameterError, match="at least two"): silhouette(x, groups)


def test_components_have_the_variances_of_the_covariance():
    x = (torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
         * torch.arange(1, 8))
    points, share = pca(x, 3)
    values = torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0)
    assert torch.allclose(share, values[:3] / values.sum())
    assert torch.allclose(torch.cov(points.T), torch.diag(values[:3]), atol=1e-9)
    assert torch.allclose(pca(x + 100, 3)[0], points, atol=1e-6)
    assert torch.allclose(
        pca(x[:, torch.randperm(7, generator=torch.Generator().manual_seed(1))], 3)[0], points,
        atol=1e-6)
    assert pca(torch.ones(4, 3))[1].tolist() == [0, 0]
    with pytest.raises(ParameterError, match="at most 1"): pca(x[:1])


def test_interval_covers_the_truth():
    "95 % of intervals of 100 pairs hold the correlation from which the pairs were drawn."
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        x = rng.normal(size=100)
        low, high = pearson_interval(
            x, .5 * x + .75**.5 * rng.normal(size=100), samples=300, seed=trial)
        hits += low <= .5 <= high
    assert 180 <= hits <= 198


def test_interval_does_not_see_scale():
    x = np.random.default_rng(0).normal(size=30)
    assert (pearson_interval(x, x**3)
            == pytest.approx(pearson_interval(1e6 * x - 1e9, 1e-3 * x**3), abs=1e-6))
    assert pearson_interval(x, x) == pytest.approx((1, 1))
    assert pearson_interval(x, -x) == pytest.approx((-1, -1))


def vectors(texts, kinds=KINDS): # "de:3": language and number
    def drawn(key):
        return torch.from_numpy(np.random.default_rng(list(key.encode())).normal(size=24))
    out = dict(
        mean=[2 * drawn(t.text.split(":")[0]) + drawn(t.text.split(":")[1]) for t in texts],
        y=[drawn(t.text.split(":")[1]) for t in texts],
        z=[drawn(t.text.split(":")[0]) for t in texts])
    return {k: torch.stack(out[k]) for k in kinds}


vectors.model = True


def encoder_alone(texts, kinds=KINDS[:1]): return vectors(texts, kinds)


encoder_alone.model = None
PAIRS = Dataset.from_list(
    [dict(text_a=f"en:{i}", text_b=f"de:{i * j}", score=5. * (j == 1), lang_a="en", lang_b="de")
     for i in range(1, 20)
     for j in (1, 2)])


def test_tables_of_a_system_and_of_the_encoder_alone():
    table = sts_table(vectors, [("toy", "a"), ("toy", "b")], lambda *_: PAIRS, 200)
    assert ({"part", "lang_a", "lang_b", "kind", "pearson", "pearson_low", "pearson_high",
             "spearman", "pairs"}
            <= set(table))
    assert len(table) == 6
    wide = table.pivot(index="part", columns="kind", values="pearson")
    assert wide.index.tolist() == ["a", "b"] and (wide["y"] - wide["z"] > 50).all()
    alone = sts_table(encoder_alone, [("toy", "a")], lambda *_: PAIRS, 200)
    assert alone["kind"].tolist() == ["mean"]
    assert alone.iloc[0].to_dict() == table.iloc[0].to_dict()


def test_geometry_of_parallel_sentences():
    versions = {lang: [f"{lang}:{i}" for i in range(57)] for lang in ("en", "de", "zh", "ar")}
    rows, points = geometry_tables(vectors, versions, "toy", groups=20, shown=7)
    by = rows.set_index("kind")
    assert by["sentences"].tolist() == [20] * 3
    assert by.loc["y", "silhouette_meaning"] == pytest.approx(1)
    assert by.loc["z", "silhouette_language"] == pytest.approx(1)
    assert set(points["kind"]) == {"mean", "y"}
    assert points.groupby(["kind", "lang"]).size().eq(7).all()
    assert points["group"].max() == 6
    again = geometry_tables(vectors, versions, "toy", groups=20, shown=7)
    assert rows.equals(again[0]) and points.equals(again[1])
    alone = geometry_tables(encoder_alone, versions, "toy")
    assert alone[0]["kind"].tolist() == ["mean"] and alone[0]["sentences"].tolist() == [57]
    found = retrieval_rows(vectors, versions, "toy")
    assert (found[found["kind"] == "y"][["to_source", "from_source", "mean"]].to_numpy().tolist()
            == [[100] * 3] * 3)
    assert set(found["lang"]) == {"de", "zh", "ar"}
    assert len(retrieval_rows(encoder_alone, versions, "toy", "zh")) == 3


@pytest.mark.parametrize("text, message", [
    ("en\tde\na\n", ":2: 1 columns"),
    ("en\tde\na\t \n", "empty one"),
    ("ar\tde\na\tb\n", "en among them"),
    ("en\tde\n", "sentences below")])
def test_malformed_parallel_files(tmp_path, text, message):
    (tmp_path / "x.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message): parallel_xnli(tmp_path / "x.tsv")
