"Geometry: silhouettes, components and intervals against their definitions and against scipy."
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from s2dm.core import DataError, ParameterError
from s2dm.geometry import (
    geometry_tables, parallel_xnli, pca, pearson_interval, retrieval_rows, silhouette, sts_table)
from s2dm.vectors import KINDS


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
