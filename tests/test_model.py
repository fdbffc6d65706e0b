"""Hard tests of s2dm.model: shapes, padding, sampling, settings, gradients, saved folders, half
precision and training. The examples that explain them stand in nbs/02d_model.ipynb."""
import contextlib
import json
import os
import pickle
import re
import shutil
from dataclasses import fields
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close

from s2dm import __version__
from s2dm import losses as L
from s2dm.core import DataError, MissingData, ParameterError, seed_everything
from s2dm.losses import masked_mean
from s2dm.model import (
    ABLATIONS, S2DM, Latents, Posterior, PosteriorNetworks, S2DMConfig, at_words, draw,
    feed_forward, model_card)
from s2dm.systems import EDITIONS, VARIANTS
from s2dm.vmf import POSTERIORS

d, V, M, W, T = 10, 31, 6, 5, 8
E = 4 # width of input embeddings
SMALL = dict(
    encoder_width=d, embedding_width=E, vocabulary=V, latent_width=M, mlp_width=7, decoder_width=9,
    wpl_width=7, max_positions=6, depth_rank=4)
ALL = ABLATIONS["vgvae_all"]
SYSTEMS = L.TERMS | ABLATIONS
SEMANTIC, SYNTACTIC = ("mu_y", "kappa"), ("mu_z", "logvar_z")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Tensors are tiny here: threads that wait for one another would cost more than they compute."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**settings): return S2DMConfig(**SMALL | settings)


def make(N=6, seed=0, dtype=torch.float32, extra=0):
    """A batch of N sentences; `extra` columns of padding, full of nan and nonsense, at the end of
    subwords and words."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, W + 1, (N,), generator=g)
    # subword 0 is a special token
    starts = torch.rand(N, T - 1, generator=g).argsort(1)[:, :W].sort(1).values + 1
    last = starts.gather(1, lengths[:, None] - 1)
    place = torch.arange(T)
    mask = (place >= starts[:, :1]) & (place <= last + 1)
    words = torch.arange(W) < lengths[:, None]
    distances = torch.randint(1, 6, (N, W, W), generator=g)
    b = dict(
        h=torch.randn(N, T, d, generator=g).to(dtype), mask=mask,
        ids=torch.randint(V, (N, T), generator=g), first=starts, word_mask=words,
        group=torch.arange(N // 2).repeat(2), tags=torch.randint(17, (N, W), generator=g),
        depths=torch.randint(5, (N, W), generator=g), distances=distances + distances.mT,
        e=torch.randn(N, T, E, generator=g).to(dtype))
    if extra:
        fill = dict(
            h=torch.nan, mask=False, ids=-7, first=-9, word_mask=False, tags=-3, depths=10**6,
            distances=10**6, e=torch.nan)
        for k, value in fill.items():
            more = torch.full_like(b[k][:, :1], value).expand(-1, extra, *b[k].shape[2:])
            b[k] = torch.cat([b[k], more], 1)
        b["distances"] = F.pad(b["distances"], (0, extra), value=-5)
        for name in "h", "e": b[name] = b[name].masked_fill(~b["mask"][..., None], torch.nan)
        for name in "first", "tags", "depths": b[name] = b[name].masked_fill(~b["word_mask"], -99)
    return b


def model_of(seed=0, sure=False, **settings):
    "A small model; a `sure` one samples its own locations, up to 1e-6."
    torch.manual_seed(seed)
    model = S2DM(config(**settings))
    if sure:
        with torch.no_grad():
            for net, value in (model.posteriors.kappa, 1e13), (model.posteriors.logvar_z, -60.):
                net[-1].weight.zero_()
                net[-1].bias.fill_(value)
    return model


def largest(net):
    return max(0. if p.grad is None else p.grad.abs().max().item() for p in net.parameters())


# ---------------------------------------------------------------- settings
def test_editions_are_what_the_documentation_says():
    paper, released, refined = (S2DMConfig(edition=e).as_dict() for e in EDITIONS)
    def differ(a): return {k: v for k, v in a.items() if v != paper[k] and k != "edition"}
    assert differ(released) == dict(
        reduction="mean", pooling="parameters", kappa_min=100., negatives="own",
        sdl_vectors="locations", decoder_layers=3, wpl_layers=4, wpl_width=400, distance_rank=32,
        weight_KL_y=.01, weight_KL_z=.001)
    assert differ(refined) == dict(
        reduction="mean", pooling="parameters", negatives="violating", sdl_vectors="locations",
        z_level="token", weight_KL_y=.001, weight_KL_z=.001)
    assert refined == S2DMConfig().as_dict()
    wanted = dict(
        reduction="sum", e_level="states", decoder_layers=1, wpl_width=200, pooling="samples",
        kappa_min=0., negatives="crossed", sdl_vectors="samples", wpl_layers=3, distance_rank=0,
        z_level="sentence", posterior="vmf", latent_width=200, margin=.4, depth_rank=128, tags=17)
    assert {k: paper[k] for k in wanted} == wanted
    assert {v for k, v in paper.items() if k.startswith("weight_")} == {1.}


def test_the_notebook_has_a_row_for_each_setting_of_an_edition():
    cells = json.loads(
        (Path(__file__).parents[1] / "nbs/02d_model.ipynb").read_text(encoding="utf-8"))["cells"]
    table = next(
        "".join(c["source"]) for c in cells if "".join(c["source"]).startswith("## Editions"))
    rows = {
        name for row in re.findall(r"^\| (`.+?) \|", table, re.M)
        for name in re.findall(r"`(\w+)`", row)}
    all_editions = [S2DMConfig(edition=e).as_dict() for e in EDITIONS]
    assert rows == {k for k in all_editions[0] if len({str(a[k]) for a in all_editions}) > 1} - {
        "edition"}


OTHER = dict(
    losses=("RL",), paired=False, encoder_width=5, embedding_width=4, vocabulary=9, decoder_rows=8,
    reduction=None, e_level=None, tags=3, max_positions=2, latent_width=7,
    posterior="power_spherical", kappa_min=3., pooling=None, z_level=None, mlp_layers=2,
    mlp_width=3, decoder_layers=2, decoder_width=4, wpl_layers=2, wpl_width=6, depth_rank=5,
    distance_rank=6, sdl_vectors=None, negatives=None, margin=.1,
    **{f"weight_{name}": .5 for name in ALL})


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("name", OTHER)
def test_a_setting_can_be_overridden_alone(edition, name):
    base = (dict(edition=edition, variant="s2dm_single_sp")
            if name == "paired"
            else dict(edition=edition))
    before = S2DMConfig(**base).as_dict()
    two = dict(
        reduction=("sum", "mean"), e_level=("states", "embeddings"),
        pooling=("samples", "parameters"), z_level=("sentence", "token"),
        sdl_vectors=("samples", "locations"), negatives=("own", "violating"), paired=(True, False))
    value = next(v for v in two[name] if v != before[name]) if name in two else OTHER[name]
    after = S2DMConfig(**base, **{name: value}).as_dict()
    assert {k for k in after if after[k] != before[k]} == {name} and after[name] == value


def test_every_setting_has_such_a_test():
    assert {*OTHER, "edition", "variant"} == {f.name for f in fields(S2DMConfig)}


def test_variants_set_losses_and_pairs():
    for name, losses in SYSTEMS.items():
        c = S2DMConfig(variant=name)
        assert c.losses == losses
        assert c.paired == ("single" not in name)
        assert tuple(c.weights) == losses
    assert VARIANTS == ("baseline", *L.TERMS, *ABLATIONS)
    subsets = {frozenset(s) for n in range(4) for s in combinations(("CRL", "SDL", "WPL"), n)}
    assert (
        {frozenset(v) - {"RL", "KL_z", "KL_y"} for k, v in ABLATIONS.items() if k != "vgvae_all"}
        == subsets)
    assert len(ABLATIONS) == 9


@pytest.mark.parametrize("settings, message", [
    (dict(kapa_min=1), "did you mean 'kappa_min'"),
    (dict(edition="papr"), "did you mean 'paper'"),
    (dict(edition=["paper"]), "choose one of"),
    (dict(variant="baseline"), "choose one of"),
    (dict(losses=()), "at least one"),
    (dict(losses="RL,RL"), "each once"),
    (dict(losses="RL,XL"), "choose one of"),
    (dict(latent_width=1), "from 2"),
    (dict(kappa_min=-1), "from 0"),
    (dict(weight_RL=-1.), "from 0"),
    (dict(posterior="gauss"), "choose one of"),
    (dict(margin=float("nan")), "margin"),
    (dict(paired=False), "CRL and SDL"),
    (dict(variant="s2dm_single_pos", losses="SDL"), "SDL"),
    (dict(latent_width=2.5), "latent_width"),
    (dict(negatives="all"), "choose one of")])
def test_impossible_settings(settings, message):
    with pytest.raises(ParameterError, match=re.escape(message)): S2DMConfig(**settings)


def test_settings_survive_json():
    for name in SYSTEMS:
        c = S2DMConfig(edition="released", variant=name, margin=.123, kappa_min=7)
        assert S2DMConfig(**json.loads(json.dumps(c.as_dict()))) == c


# ---------------------------------------------------------------- parts
def test_feed_forward_has_the_layers_it_is_asked_for():
    for widths in (3, 4), (3, 5, 4), (3, 5, 6, 4):
        net = feed_forward(*widths)
        assert ([tuple(p.shape) for n, p in net.named_parameters() if "weight" in n]
                == [(b, a) for a, b in zip(widths, widths[1:])])
        assert len(net) == 2 * len(widths) - 3 and isinstance(net[-1], torch.nn.Linear)


def test_masked_mean_is_a_loop():
    b = make()
    x = b["h"].masked_fill(~b["mask"][..., None], torch.nan)
    assert_close(
        masked_mean(x, b["mask"]), torch.stack([x[n][b["mask"][n]].mean(0) for n in range(6)]))
    assert_close(masked_mean(x[..., 0], b["mask"]), masked_mean(x, b["mask"])[:, 0])
    assert masked_mean(x, torch.zeros_like(b["mask"])).eq(0).all()


def test_at_words_is_a_loop():
    b = make()
    got = at_words(b["h"], b["first"].masked_fill(~b["word_mask"], 10**6), b["word_mask"])
    for n in range(6):
        for w in range(W):
            if b["word_mask"][n, w]: assert torch.equal(got[n, w], b["h"][n, b["first"][n, w]])


@pytest.mark.parametrize("kappa_min", [0., 100.])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_posterior_networks(layers, kappa_min):
    b, nets = make(), PosteriorNetworks(config(mlp_layers=layers, kappa_min=kappa_min))
    q = nets(b["h"], b["mask"])
    assert q.mu_y.shape == q.mu_z.shape == q.logvar_z.shape == (6, T, M) and q.kappa.shape == (6, T)
    assert (q.kappa > kappa_min).all()
    assert all(len(net) == 2 * layers + 1 for net in nets.children())
    n, i = b["mask"].nonzero()[3]
    h = b["h"][n, i]
    assert_close(q.mu_y[n, i], nets.mu_y(h) / nets.mu_y(h).norm())
    assert_close(q.kappa[n, i], F.softplus(nets.kappa(h))[0] + kappa_min)
    assert_close((q.mu_z[n, i], q.logvar_z[n, i]), (nets.mu_z(h), nets.logvar_z(h)))


# ---------------------------------------------------------------- sampling
def posterior_of(N=2, S=4, kappa=30., seed=0):
    g = torch.Generator().manual_seed(seed)
    def randn(): return torch.randn(N, S, M, generator=g)
    return Posterior(
        F.normalize(randn() + 1, dim=-1), torch.full((N, S), kappa), randn(), randn() / 2)


@pytest.mark.parametrize("family", ["vmf", "power_spherical"])
@pytest.mark.parametrize("pooling", ["samples", "parameters"])
def test_samples_have_the_moments_of_their_reading(pooling, family):
    torch.manual_seed(0)
    n, S = 20_000, 3
    one = posterior_of(1, 4)
    mask = torch.tensor([[True] * S + [False]])
    q = Posterior(
        *(getattr(one, f.name).expand(n, *[-1] * (getattr(one, f.name).dim() - 1))
          for f in fields(Posterior)))
    u = draw(q, mask.expand(n, -1), config(pooling=pooling, posterior=family))
    if pooling == "samples":
        parts = POSTERIORS[family](one.mu_y[0, :S], one.kappa[0, :S])
        y_mean, y_var = parts.mean.mean(0), parts.variance.sum(0) / S**2
        z_var = one.logvar_z[0, :S].exp().sum(0) / S**2
        assert (u.y.norm(dim=-1) < 1).all()
    else:
        part = POSTERIORS[family](F.normalize(one.mu_y[0, :S].mean(0), dim=-1), one.kappa[0, 0])
        y_mean, y_var, z_var = part.mean, part.variance, one.logvar_z[0, :S].mean(0).exp()
        assert_close(u.y.norm(dim=-1), torch.ones(n))
        assert_close(u.drawn_from.mu_y.norm(dim=-1), torch.ones(n))
    assert ((u.y.mean(0) - y_mean).abs() < 5 * (y_var / n).sqrt()).all()
    assert_close(u.y.var(0), y_var, rtol=.06, atol=0)
    assert ((u.z.mean(0) - one.mu_z[0, :S].mean(0)).abs() < 5 * (z_var / n).sqrt()).all()
    assert_close(u.z.var(0), z_var, rtol=.06, atol=0)


def test_what_is_drawn_and_what_is_compared():
    q, mask = posterior_of(), torch.tensor([[True] * 4, [True, True, False, False]])
    for pooling in "samples", "parameters":
        for level in "sentence", "token":
            for compared in "samples", "locations":
                u = draw(q, mask, config(pooling=pooling, z_level=level, sdl_vectors=compared))
                assert isinstance(u, Latents)
                assert u.y.shape == u.z.shape == u.compared.shape == (2, M)
                assert u.tokens is q
                assert (u.drawn_from is q) == (pooling == "samples")
                assert (u.z_tokens is None) == (pooling == "parameters" and level == "sentence")
                assert torch.equal(
                    u.compared, u.y if compared == "samples" else masked_mean(q.mu_y, mask))
                if pooling == "samples": assert_close(u.z, masked_mean(u.z_tokens, mask))


def test_a_seed_reproduces_and_another_does_not():
    def one(seed, draws):
        seed_everything(seed)
        model = S2DM(config())
        seed_everything(draws)
        return model.loss_terms(make())
    a, b, c, e = one(0, 0), one(0, 0), one(0, 1), one(1, 0)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["RL"], c["RL"])
    assert not torch.equal(a["RL"], e["RL"])


# ---------------------------------------------------------------- the model
@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("variant", SYSTEMS)
def test_terms_of_every_system(variant, edition):
    model, b = model_of(variant=variant, edition=edition), make()
    terms = model.loss_terms(b)
    assert tuple(terms) == SYSTEMS[variant]
    for term in terms.values():
        assert term.shape == ((3,) if model.config.paired else (6,))
        assert term.isfinite().all()
        assert (term >= -1e-5).all()
    L.objective(terms, model.config.losses, model.config.weights).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    unused = {name for name, p in model.named_parameters() if not p.grad.abs().max() > 0}
    assert not unused, unused


def names(**settings):
    return {
        n.rsplit(".", 2)[0] if re.search(r"\.\d+\.", n) else n.rsplit(".", 1)[0]
        for n, _ in S2DM(config(**settings)).named_parameters()}


def test_only_the_networks_that_the_losses_need_exist():
    posteriors = {f"posteriors.{n}" for n in (*SEMANTIC, *SYNTACTIC)}
    decoder = {"decoder.hidden", "decoder.output"}
    assert names(variant="vgvae") == names(variant="vgvae_crl_sdl") == posteriors | decoder
    assert names(variant="vgvae_wpl") == posteriors | decoder | {"heads.position"}
    assert (names(variant="s2dm_pos") == names(variant="s2dm_single_pos")
            == posteriors | decoder | {"heads.position", "heads.tag"})
    assert (names(variant="s2dm_sp") == names(variant="s2dm_single_sp")
            == posteriors | decoder | {"heads.position", "heads.probe"})
    assert (names(variant="s2dm_sp", distance_rank=3)
            == posteriors | decoder | {"heads.position", "heads.probe", "heads.distance_probe"})
    assert names(losses="SDL") == posteriors
    assert names(losses="POS") == posteriors | {"heads.tag"}
    assert names(losses="CRL") == posteriors | decoder
    assert names(losses="STL_distance") == posteriors | {"heads.probe"}
    assert names(losses="STL_distance", distance_rank=3) == posteriors | {"heads.distance_probe"}


@pytest.mark.parametrize("losses", [(name,) for name in ALL] + [
    ("CRL", "RL"), ("STL_distance", "WPL"), tuple(reversed(ALL))])
def test_a_term_does_not_depend_on_its_company(losses):
    whole, b = model_of(variant="vgvae_all", sure=True), make()
    part = S2DM(config(losses=losses))
    part.load_state_dict(whole.state_dict(), strict=False)
    want, got = whole.loss_terms(b), part.loss_terms(b)
    assert tuple(got) == losses
    for name in losses: assert_close(got[name], want[name], rtol=1e-4, atol=1e-5)


READINGS = [
    dict(edition="paper"), dict(edition="released"), dict(edition="refined"),
    dict(edition="paper", pooling="parameters", z_level="token"),
    dict(edition="paper", e_level="embeddings"),
    dict(edition="refined", e_level="embeddings", reduction="sum")]


@pytest.mark.parametrize("settings", READINGS)
def test_bags_divergences_and_sdl_by_hand(settings):
    model, b = model_of(variant="vgvae_all", **settings).double(), make(dtype=torch.float64)
    c, u = model.config, model(b["h"], b["mask"])
    terms = model.loss_terms(b, u)
    def bag(y):
        logp = F.log_softmax(
            model.decoder.output(model.decoder.hidden(torch.cat([y, u.z], -1))), -1)
        found = [-row[i[m]] for row, i, m in zip(logp, b["ids"], b["mask"])]
        return torch.stack([x.sum() if c.reduction == "sum" else x.mean() for x in found])
    assert_close(terms["RL"], L.pair_sum(bag(u.y)))
    assert_close(terms["CRL"], L.pair_sum(bag(torch.cat([u.y[3:], u.y[:3]]))))
    q, q_mask = (u.tokens, b["mask"]) if c.pooling == "samples" else (u.drawn_from, None)
    assert_close(terms["KL_z"], L.pair_sum(L.kl_z(q.mu_z, q.logvar_z, q_mask)))
    assert_close(terms["KL_y"], L.pair_sum(L.kl_y(q.mu_y, q.kappa, q_mask)))
    n, found = L.hardest_negatives(u.compared, b["group"])
    if c.negatives == "violating":
        assert_close(terms["SDL"], L.violating_discrimination_loss(u.compared, b["group"]))
    else:
        assert_close(
            terms["SDL"],
            L.semantic_discrimination_loss(u.compared, n, found, .4, c.negatives == "crossed"))


@pytest.mark.parametrize("settings", READINGS)
def test_syntactic_terms_by_hand(settings):
    model, b = model_of(variant="vgvae_all", **settings).double(), make(dtype=torch.float64)
    c, u, heads, words = model.config, model(b["h"], b["mask"]), model.heads, b["word_mask"]
    terms = model.loss_terms(b, u)
    sums = dict.fromkeys(("WPL", "POS", "STL_depth", "STL_distance"), 0)
    for s in (1, 4):  # the second pair
        at = b["first"][s][words[s]]
        z = u.z_tokens[s, at] if c.z_level == "token" else u.z[s].expand(len(at), -1)
        e = b["e"] if c.e_level == "embeddings" else b["h"]
        h, S = torch.cat([e[s, at], z], -1), len(at)
        B = heads.distance_probe if c.distance_rank else heads.probe
        apart = (B(h)[:, None] - B(h)[None]).square().sum(-1)
        reduce = torch.sum if c.reduction == "sum" else torch.mean
        sums["WPL"] += F.cross_entropy(
            heads.position(h)[:, :S], torch.arange(S), reduction=c.reduction)
        sums["POS"] += F.cross_entropy(heads.tag(h), b["tags"][s][words[s]], reduction=c.reduction)
        sums["STL_depth"] += reduce(
            (b["depths"][s][words[s]] - heads.probe(h).square().sum(-1)).abs())
        sums["STL_distance"] += reduce((b["distances"][s, :S, :S] - apart).abs())
    for name, value in sums.items(): assert_close(terms[name][1], value)


@pytest.mark.parametrize("settings", READINGS)
def test_padding_changes_nothing(settings):
    model = model_of(variant="vgvae_all", sure=True, **settings)
    a, b = make(), make(extra=3)
    want, got = model.loss_terms(a), model.loss_terms(b)
    for name in want: assert_close(got[name], want[name], rtol=2e-4, atol=2e-5)
    L.objective(got, ALL).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for vectors in model.semantic, model.syntactic:
        assert_close(vectors(b["h"], b["mask"]), vectors(a["h"], a["mask"]))
        tokens = vectors(b["h"], b["mask"], "token")
        assert_close(tokens[:, :T], vectors(a["h"], a["mask"], "token"))
        assert tokens[~b["mask"]].eq(0).all()


def test_exchanging_the_halves_of_the_pairs_changes_no_sum():
    "The two subnetworks share everything: which language is the source does not matter."
    b = make()
    swapped = {k: v.roll(3, 0) for k, v in b.items()}
    for settings in dict(edition="paper"), dict(edition="released"), dict(edition="refined"):
        model = model_of(variant="vgvae_all", sure=True, **settings)
        want, got = model.loss_terms(b), model.loss_terms(swapped)
        for name in want: assert_close(got[name], want[name], rtol=2e-4, atol=2e-5)


def test_a_single_network_ignores_what_stands_beside_a_sentence():
    model, b = model_of(variant="s2dm_single_sp", sure=True), make(N=5)
    whole, one = model.loss_terms(b), model.loss_terms({k: v[2:3] for k, v in b.items()})
    for name in whole: assert_close(one[name][0], whole[name][2], rtol=2e-4, atol=2e-5)


def test_negatives_come_from_a_memory_too():
    model, b = model_of(variant="vgvae_sdl", edition="paper"), make()
    u = model(b["h"], b["mask"])
    alone = model.loss_terms(b, u)
    # each sentence itself, under another name: its hardest negative has cosine 1
    everyone = u.y.detach(), torch.full((6,), 99)
    # y_s meets the negative of y_t, which is y_t
    assert_close(model.loss_terms(b, u, *everyone)["SDL"], torch.full((3,), .8))
    own = model_of(variant="vgvae_sdl", edition="paper", negatives="own").loss_terms(
        b, u, *everyone)["SDL"]
    assert_close(own, 2 * (1.4 - F.cosine_similarity(u.y[:3], u.y[3:])))
    every = model_of(variant="vgvae_sdl", edition="paper", negatives="violating").loss_terms(
        b, u, *everyone)["SDL"]
    assert_close(every, L.violating_discrimination_loss(u.y, b["group"], *everyone))
    same = model.loss_terms(b, u, u.y.detach(), b["group"])
    assert_close(same["SDL"], alone["SDL"])


def test_a_sentence_without_anything_costs_nothing_and_breaks_nothing():
    b = make()
    b["mask"][[0, 3]] = False
    b["word_mask"][[0, 3]] = False
    for edition in EDITIONS:
        model = model_of(variant="vgvae_all", edition=edition)
        terms = model.loss_terms(b)
        assert all(terms[k][0] == 0 for k in ALL if k not in ("SDL",)), {
            k: v[0] for k, v in terms.items()}
        L.objective(terms, ALL).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_representations_are_locations():
    model, b = model_of(kappa_min=1.), make()
    q = model(b["h"], b["mask"]).tokens
    y = model.semantic(b["h"], b["mask"], "token")
    z = model.syntactic(b["h"], b["mask"], level="token")
    assert torch.equal(y[b["mask"]], q.mu_y[b["mask"]])
    assert torch.equal(z[b["mask"]], q.mu_z[b["mask"]])
    assert_close(y.norm(dim=-1), b["mask"].float())
    # nothing is sampled
    assert torch.equal(model.semantic(b["h"], b["mask"]), model.semantic(b["h"], b["mask"]))
    assert_close(model.syntactic(b["h"], b["mask"])[4], q.mu_z[4][b["mask"][4]].mean(0))
    with pytest.raises(ParameterError, match="did you mean 'token'"):
        model.semantic(b["h"], b["mask"], "tokens")
    h = b["h"].requires_grad_()
    model.requires_grad_(False).semantic(h, b["mask"], "token").square().sum(0).sum().backward()
    # the second stage trains the encoder under a frozen S2DM
    assert h.grad.isfinite().all() and h.grad[~b["mask"]].eq(0).all()


def test_features_in_half_precision_are_read():
    model, b = model_of(variant="vgvae_all", sure=True), make()
    want = model.loss_terms(b | dict(h=b["h"].half().float()))
    got = model.loss_terms(b | dict(h=b["h"].half()))
    for name in want: assert_close(got[name], want[name], rtol=2e-4, atol=2e-5)


# ---------------------------------------------------------------- gradients
def gradient(name, **settings):
    model = model_of(variant="vgvae_all", edition="paper", **settings).double()
    b = make(dtype=torch.float64)
    model.loss_terms(b)[name].sum().backward()
    return {k: largest(net) for k, net in model.posteriors.named_children()}


@pytest.mark.parametrize("pooling", ["samples", "parameters"])
@pytest.mark.parametrize("level", ["sentence", "token"])
@pytest.mark.parametrize("name", ALL)
def test_what_each_loss_teaches(name, level, pooling):
    g = gradient(name, z_level=level, pooling=pooling)
    blind = {"SDL": SYNTACTIC, "KL_z": SEMANTIC, "KL_y": (*SYNTACTIC, "mu_y")}.get(
        name, () if name in ("RL", "CRL") else SEMANTIC)
    for net, size in g.items():
        if net in blind: assert size == 0, (net, size)
        # z cancels in h_i - h_j
        elif name == "STL_distance" and level == "sentence": assert size < 1e-12, (net, size)
        else: assert size > 1e-6, (net, size)


def test_locations_in_sdl_teach_no_concentration():
    g = gradient("SDL", sdl_vectors="locations")
    assert g["mu_y"] > 1e-6 and g["kappa"] == 0


# ---------------------------------------------------------------- folders
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("settings", [
    dict(), dict(variant="s2dm_pos", edition="released", margin=.25), dict(variant="vgvae_wpl")])
def test_saved_and_loaded_is_the_same_to_the_bit(settings, dtype, tmp_path):
    model = model_of(**settings).to(dtype)
    state = torch.get_rng_state()
    again = S2DM.from_pretrained(model.save_pretrained(tmp_path / "a" / "model"))
    assert torch.equal(torch.get_rng_state(), state) and not again.training
    assert again.config == model.config and again.state_dict().keys() == model.state_dict().keys()
    for (name, p), q in zip(model.named_parameters(), again.parameters()):
        assert (p.dtype == q.dtype and torch.equal(p, q) and q.requires_grad
                and q.device.type == "cpu"), name
    assert (sorted(p.name for p in (tmp_path / "a/model").iterdir())
            == ["README.md", "config.json", "model.safetensors"])
    written = json.loads((tmp_path / "a/model/config.json").read_text())
    assert written["model_type"] == "s2dm" and written["s2dm_version"] == __version__


def test_a_loaded_model_trains_and_does_not_depend_on_its_file(tmp_path):
    model = model_of()
    again = S2DM.from_pretrained(model.save_pretrained(tmp_path)).train()
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    for a in model, again:
        torch.manual_seed(3)
        L.objective(a.loss_terms(make()), a.config.losses).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), again.parameters()))


def test_the_card_is_written_once(tmp_path):
    model = model_of(variant="s2dm_pos")
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card == model_card(model.config, tmp_path.name)
    assert card.startswith("---\n")
    assert not re.search(r"\{\w+\}", card)
    assert all(f"| {name} |" in card for name in model.config.as_dict())
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def edit(folder, change):
    file = folder / "config.json"
    obj = json.loads(file.read_text())
    file.write_text(json.dumps(change(obj) or obj))


def other_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    weights = {k: v.clone() for k, v in weights.items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


def forget_sum(folder):
    "As an older version left it: what follows the checksum is to be seen."
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        edit(folder, lambda c: c.pop("weights_sha256") and None)


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def whole_numbers(folder):
    bias = torch.ones(V, dtype=torch.int64)
    other_weights(folder, lambda weights: weights.update({"decoder.output.bias": bias}))


TROUBLE = {
    "unknown setting": (lambda f: edit(f, lambda c: c.update(margn=1)), DataError,
                        "config.json: unknown parameter 'margn', did you mean 'margin'"),
    "missing setting": (
        lambda f: edit(f, lambda c: c.pop("margin") and None), DataError, "lacks 'margin'"),
    "impossible value": (lambda f: edit(f, lambda c: c.update(pooling="max")), DataError,
                         "config.json: pooling='max' is not possible"),
    "no version": (
        lambda f: edit(f, lambda c: c.pop("s2dm_version") and None), DataError, "s2dm_version"),
    "another model": (
        lambda f: edit(f, lambda c: c.update(model_type="bert")), DataError, "describes no S2DM"),
    "a list": (lambda f: edit(f, lambda c: [1]), DataError, "holds a list"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), DataError, "is no JSON"),
    "absurd sizes": (lambda f: edit(f, lambda c: c | dict(mlp_width=10**30)), DataError,
                     "config.json cannot be read"),
    "not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), DataError, "is no JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), MissingData, "config.json is not there"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), MissingData,
                   "model.safetensors is not there"),
    "cut short": (cut_short, DataError, "no complete safetensors"),
    "empty": (
        lambda f: (f / "model.safetensors").write_bytes(b""), DataError, "no complete safetensors"),
    "a pickle": (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"a": 1})), DataError,
                 "no complete safetensors"),
    "a torch file": (lambda f: torch.save({"a": torch.ones(3)}, f / "model.safetensors"), DataError,
                     "no complete safetensors"),
    "a weight less": (lambda f: other_weights(f, lambda w: w.pop("decoder.output.bias")), DataError,
                      "decoder.output.bias"),
    "a weight more": (
        lambda f: other_weights(f, lambda w: w.update(more=torch.ones(1))), DataError, "more"),
    "another shape": (lambda f: edit(f, lambda c: c.update(latent_width=M + 1)), DataError,
                      "does not belong to its config.json"),
    "whole numbers": (whole_numbers, DataError, "does not belong")}


@pytest.mark.parametrize("what", TROUBLE)
def test_a_folder_that_is_wrong_is_named(what, tmp_path):
    spoil, kind, message = TROUBLE[what]
    spoil(model_of().save_pretrained(tmp_path))
    forget_sum(tmp_path)
    with pytest.raises(kind, match=re.escape(message)) as caught: S2DM.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_weights_of_another_model_are_refused(tmp_path):
    mine = model_of().save_pretrained(tmp_path / "mine")
    torch.manual_seed(1)
    other = model_of()
    with torch.no_grad(): next(other.parameters()).add_(1)
    shutil.copy(other.save_pretrained(tmp_path / "other") / "model.safetensors", mine)
    with pytest.raises(DataError, match="model.safetensors does not belong to its config.json"):
        S2DM.from_pretrained(mine)
    forget_sum(mine)
    S2DM.from_pretrained(mine)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, mask):
    before = os.umask(mask)
    try: folder = model_of().save_pretrained(tmp_path / "model")
    finally: os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o666 & ~mask}


def test_no_folder_at_all(tmp_path):
    with pytest.raises(MissingData, match="nowhere"): S2DM.from_pretrained(tmp_path / "nowhere")


# ------------------------------------------------ a decoder of the subwords that occur
def some_subwords(**settings):
    "A model whose decoder knows every second subword, and a batch that has no other."
    known = torch.arange(0, V, 2)
    torch.manual_seed(0)
    model = S2DM(config(**dict(variant="s2dm_sp", decoder_rows=len(known)) | settings))
    model.decoder.know(known.flip(0).tolist())
    batch = make()
    return model, batch | dict(ids=batch["ids"] // 2 * 2), known


@pytest.mark.parametrize("reduction", L.REDUCTIONS)
def test_a_decoder_of_some_subwords_is_the_full_one_without_the_others(reduction):
    """Values and gradients: the other logits of the full decoder are so low that they count for
    nothing."""
    part, batch, known = some_subwords(reduction=reduction)
    part, batch = part.double(), batch | dict(h=batch["h"].double())
    full = S2DM(config(variant="s2dm_sp", reduction=reduction)).double()
    weights = part.state_dict()
    del weights["decoder.row"]
    weights["decoder.output.weight"] = torch.zeros(V, 9, dtype=torch.float64).index_copy(
        0, known, weights["decoder.output.weight"])
    weights["decoder.output.bias"] = torch.full((V,), -1e30, dtype=torch.float64).index_copy(
        0, known, weights["decoder.output.bias"])
    full.load_state_dict(weights)
    latents = part(batch["h"], batch["mask"])
    got, want = part.loss_terms(batch, latents), full.loss_terms(batch, latents)
    for name in want: assert_close(got[name], want[name])
    for terms in got, want: (terms["RL"] + terms["CRL"]).sum().backward(retain_graph=True)
    assert_close(part.decoder.output.weight.grad, full.decoder.output.weight.grad[known])
    assert_close(part.decoder.hidden[0].weight.grad, full.decoder.hidden[0].weight.grad)


def test_a_decoder_of_some_subwords_is_saved_with_them(tmp_path):
    model, batch, known = some_subwords(edition="released")
    again = S2DM.from_pretrained(model.save_pretrained(tmp_path))
    assert again.decoder.row[known].tolist() == [*range(len(known))]
    assert (again.decoder.row >= 0).sum() == len(known)
    terms = []
    for m in model, again:
        torch.manual_seed(0)
        terms.append(m.loss_terms(batch))
    for name in terms[0]: assert torch.equal(*[found[name] for found in terms])
    L.objective(terms[1], again.config.losses).backward()
    assert all(p.grad is not None for p in again.parameters())


def test_a_subword_that_the_decoder_does_not_know_is_named():
    model, batch, known = some_subwords()
    ids = batch["ids"].clone()
    ids[~batch["mask"]] = 13  # padding may hold anything
    model.loss_terms(batch | dict(ids=ids))
    ids[2, batch["mask"][2].nonzero()[0]] = 7
    with pytest.raises(DataError, match="does not know the subword ids 7 "):
        model.loss_terms(batch | dict(ids=ids))
    with pytest.raises(ParameterError, match="15 distinct subwords are given.*decoder_rows=16"):
        model.decoder.know(known[1:])
    with pytest.raises(ParameterError, match="a row for every subword"):
        model_of().decoder.know(known)


def test_a_decoder_as_deep_as_it_is_asked_for():
    for edition, layers in dict(paper=1, refined=1, released=3).items():
        decoder = model_of(edition=edition).decoder
        assert ([tuple(p.shape) for p in decoder.parameters() if p.dim() > 1]
                == [(9, 2 * M), *[(9, 9)] * (layers - 1), (V, 9)])
        assert type(decoder.hidden[-1]) is torch.nn.ReLU


def test_the_released_code_has_three_hidden_layers_of_400():
    model = S2DM(S2DMConfig(edition="released", vocabulary=V, encoder_width=768))
    def widths(net): return [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
    assert widths(model.decoder) == [(400, 400), (400, 400), (400, 400), (V, 400)]
    assert widths(model.heads.position) == [(400, 968), (400, 400), (400, 400), (256, 400)]


# ---------------------------------------------------------------- wrong batches
@pytest.mark.parametrize(
    "key", ["h", "mask", "ids", "group", "first", "word_mask", "tags", "depths", "distances"])
def test_a_batch_that_lacks_something_is_named(key):
    model, b = model_of(variant="vgvae_all"), make()
    b.pop(key)
    with pytest.raises(ParameterError, match=f"the batch lacks '{key}'"): model.loss_terms(b)


def test_a_batch_without_embeddings_is_named_where_heads_read_them():
    b = make()
    b.pop("e")
    model_of(e_level="states").loss_terms(b)
    model_of(e_level="embeddings", variant="vgvae").loss_terms(b)  # no syntactic head
    with pytest.raises(ParameterError, match="the batch lacks 'e', which WPL needs"):
        model_of(e_level="embeddings").loss_terms(b)


def test_a_batch_needs_only_what_its_losses_read():
    b = make()
    for variant, keys in dict(
            vgvae=("h", "mask", "ids"), vgvae_sdl=("h", "mask", "ids", "group"),
            s2dm_single_pos=("h", "mask", "ids", "first", "word_mask", "tags")).items():
        model_of(variant=variant).loss_terms({k: b[k] for k in keys})


def test_batches_of_wrong_shape():
    model, b = model_of(), make()
    with pytest.raises(ParameterError, match="this one has 5 sentences"):
        model.loss_terms({k: v[:5] for k, v in b.items()})
    with pytest.raises(ParameterError, match=re.escape(f"must be [N,T,{d}]")):
        model(b["h"][..., :-1], b["mask"])
    with pytest.raises(ParameterError, match=re.escape(f"must be [N,T,{d}]")):
        model(b["h"][:, :-1], b["mask"])


# ---------------------------------------------------------------- precision, devices, training
@pytest.mark.parametrize("edition", EDITIONS)
def test_autocast_is_finite_and_near(edition):
    model, b = model_of(variant="vgvae_all", sure=True, edition=edition), make()
    want = model.loss_terms(b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model.loss_terms(b)
        y = model.semantic(b["h"], b["mask"], "token")
    assert y.dtype == torch.float32
    assert_close(y.norm(dim=-1), b["mask"].float())
    for name in want:
        assert got[name].dtype == torch.float32 and got[name].isfinite().all()
        if name != "KL_y": assert_close(got[name], want[name], rtol=.1, atol=.2)
    model = model_of(variant="vgvae_all", edition=edition)
    with torch.autocast("cpu", dtype=torch.bfloat16): loss = L.objective(model.loss_terms(b), ALL)
    loss.backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("edition", EDITIONS)
def test_sampling_fetches_no_value_from_the_device(edition):
    """Meta tensors have no values: code that asks for one (item, nonzero, if), for which a GPU
    would have to wait, raises."""
    model = S2DM(config(edition=edition)).to("meta")
    b = {k: v.to("meta") for k, v in make().items()}
    u = model(b["h"], b["mask"])
    (u.y.sum() + u.z.sum() + u.compared.sum()).backward()
    assert u.y.shape == u.z.shape == (6, M)
    assert all(p.grad.shape == p.shape for p in model.posteriors.parameters())
    assert model.semantic(b["h"], b["mask"]).shape == (6, M)


@pytest.mark.parametrize("edition", EDITIONS)
def test_the_terms_fetch_no_value_from_the_device(edition, monkeypatch):
    """Fake tensors neither. On a CPU the sampler of y may wait, so its locations stand for its
    samples."""
    monkeypatch.setattr(
        "s2dm.model._draw_y", lambda q, family: q.mu_y * torch.tanh(q.kappa)[..., None])
    with FakeTensorMode():
        model = S2DM(config(variant="vgvae_all", edition=edition))
        b = {k: torch.empty(v.shape, dtype=v.dtype) for k, v in make().items()}
        terms = model.loss_terms(b)
        L.objective(terms, ALL, model.config.weights).backward()
        assert all(terms[k].shape == (3,) for k in ALL)
        assert all(p.grad.shape == p.shape for p in model.parameters())
        # what the check relies on
        with pytest.raises(DataDependentOutputException): bool(terms["RL"][0] > 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("edition", EDITIONS)
def test_on_cuda(edition):
    model, b = model_of(variant="vgvae_all", sure=True, edition=edition), make()
    want = model.loss_terms(b)
    there = {k: v.cuda() for k, v in b.items()}
    model.cuda().loss_terms(there)  # tables are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = model.loss_terms(there)
        L.objective(got, ALL).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in want: assert_close(got[name].cpu(), want[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("variant", L.TERMS)
def test_a_few_steps_reduce_the_loss(variant, edition):
    model, b = model_of(variant=variant, edition=edition), make()
    optimizer, values = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = L.objective(model.loss_terms(b), model.config.losses, model.config.weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-5:]) < .8 * sum(values[:5])
