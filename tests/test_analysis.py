"""Analysis: a system from its folders to its tables, what is missing at each stage, and which
gradient reaches what.
"""
import json
from string import ascii_letters

import numpy as np
import pandas as pd
import pytest
import torch

import s2dm.analysis
import s2dm.reference
from s2dm.analysis import AnalyseConfig, analyse, gradient_table, system_vectors
from s2dm.constituents import GoldParser
from s2dm.core import DataError, MissingData, ParameterError, write_json
from s2dm.encoder import load_encoder
from s2dm.evaluation import evaluate, read_answers, write_answers
from s2dm.features import Answer
from s2dm.reader import ReaderConfig, S2DMReader
from s2dm.reading import read_squad
from s2dm.reference import ReferenceConfig, generated_questions, train_reference
from s2dm.synthetic import Synthetic, SyntheticConfig
from s2dm.toy import save_toy_encoder, save_toy_s2dm, toy_tokenizer

LANGUAGES = ("svo", "sov_case", "vso_case")
SMALL = dict(
    languages=LANGUAGES, documents=20, sentences=500, questions=12, held_out=12, similar=12)
#: what the report reads
COLUMNS = {
    "sts": "part lang_a lang_b kind pearson pearson_low pearson_high spearman pairs",
    "retrieval": "corpus lang kind to_source from_source mean",
    "geometry": "corpus kind silhouette_language silhouette_meaning variance_1 variance_2",
    "pca": "corpus kind lang group x y",
    "constituents": "dataset lang parser of questions spans_constituent low high",
    "violations": "dataset lang reference questions violating violating_near violations low high",
    "decoding": "dataset lang questions em f1 em_constituents f1_constituents gain low high",
    "boundaries": "dataset lang errors boundary_errors wrong_place",
    "probes": "level task of metric score control selectivity chance",
    "predictability": "from to r2",
    "gradients": "edition loss module norm",
}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    words = "who did the baker visit in the market on Monday ? Anna mended two old boxes ."
    tokenizer = toy_tokenizer(words.split(), ascii_letters, model_max_length=384)
    return save_toy_encoder(tmp_path_factory.mktemp("encoder"), tokenizer, positions=384)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "A small generated corpus in the place of the default one."
    patch, before = pytest.MonkeyPatch(), Synthetic.__init__
    patch.setattr(
        Synthetic, "__init__",
        lambda self, config=None: before(self, config or SyntheticConfig(**SMALL)))
    patch.setattr(s2dm.reference, "SyntheticConfig", lambda: SyntheticConfig(**SMALL))
    yield tmp_path_factory.mktemp("data")
    patch.undo()


@pytest.fixture
def place(corpus, monkeypatch):
    monkeypatch.setenv("S2DM_DATA", str(corpus))


def config(encoder_folder, **more):
    return AnalyseConfig(
        **dict(
            model=encoder_folder, corpora="synthetic", datasets="synthetic", languages=LANGUAGES,
            groups=50, sentences=12, questions=4, samples=100)
        | more)


def save_s2dm(config, encoder):
    folder = config.folder("pretrain") / "checkpoint"
    save_toy_s2dm(folder, encoder, seed=1, vocabulary=200)


def save_reader(config, encoder, s2dm):
    torch.manual_seed(2)
    sizes = dict(max_length=200, stride=40, query=40)
    S2DMReader(encoder.model, encoder.split.tokenizer, s2dm, ReaderConfig(
        head="semantic" if s2dm else "baseline",
        **sizes)).save_pretrained(config.folder("finetune") / "checkpoint")


def reference_predictions(config, language): # a monolingual reader that knows the answers
    rows = Synthetic().reading(language)
    folder = ReferenceConfig(model=config.model, language=language).folder("evaluate")
    answers = {}
    for row in rows:
        text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        answers[row["id"]] = Answer(text, start, start + len(text), 1.0)
    write_answers(folder, f"synthetic.{language}", answers)


def test_a_system_from_its_folders_to_its_tables(encoder_folder, place):
    encoder, system = load_encoder(encoder_folder), config(encoder_folder)
    save_s2dm(system, encoder)
    save_reader(system, encoder, system_vectors(system, encoder).model)
    evaluate(system.reading)
    reference_predictions(system, "sov_case")
    first = analyse(system)
    record = json.loads((first.folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(record["tables"]) == set(COLUMNS)
    for name, columns in COLUMNS.items():
        table = pd.DataFrame(record["tables"][name])
        assert set(columns.split()) <= set(table) and len(table), name
        pd.testing.assert_frame_equal(
            table, pd.read_csv(first.folder / f"{name}.csv"), check_dtype=False, check_exact=False)
    tables = first.tables
    assert set(tables["boundaries"]["lang"]) == set(LANGUAGES)
    assert np.allclose(
        tables["boundaries"]["errors"],
        tables["boundaries"]["boundary_errors"] + tables["boundaries"]["wrong_place"])
    assert tables["constituents"].groupby("of")["spans_constituent"].max()["gold"] == 100
    violations = tables["violations"].iloc[0]
    assert violations["lang"] == "sov_case"
    assert violations["questions"] == 12
    assert len(tables["violations"]) == 1
    assert violations["violations"] == pytest.approx(
        100 * violations["violating"] / violations["questions"]
    )
    assert 0 <= violations["violating_near"] <= violations["violating"] <= 12
    said = tables["constituents"].set_index(
        ["lang", "of"]).loc[("sov_case", "predicted"), "spans_constituent"]
    assert (
        violations["violations"] <= 100 - said
    )  # of those that are no constituent, the wrong ones
    for name in ("violations", "boundaries", "constituents", "decoding"):
        assert set(tables[name]["placed"]) == {"spans"}
    assert set(tables["sts"]["kind"]) == {"mean", "y", "z"}
    assert set(tables["retrieval"]["lang"]) == {"sov_case", "vso_case"}
    assert first.missing == record["missing"]
    assert len(first.missing) == 1
    assert "svo, violations of synthetic.vso_case: no monolingual reader" in first.missing[0]
    again = analyse(system)
    for name, table in tables.items(): pd.testing.assert_frame_equal(table, again.tables[name])


def test_without_a_reader_the_rest_is_there(encoder_folder, place):
    encoder, system = load_encoder(encoder_folder), config(encoder_folder, edition="released")
    save_s2dm(system, encoder)
    result = analyse(system)
    assert {"sts", "probes", "constituents", "gradients"} <= set(result.tables)
    assert not {"boundaries", "violations", "decoding"} & set(result.tables)
    assert set(result.tables["constituents"]["of"]) == {"gold"}
    assert len(result.missing) == 2
    assert any("04_finetune" in m and m.startswith("decoding") for m in result.missing)
    assert any(
        "05_evaluate" in m and m.startswith("answers of synthetic.svo, ") for m in result.missing)


def test_the_baseline_is_the_encoder_alone(encoder_folder, place):
    result = analyse(config(encoder_folder, variant="baseline"))
    assert ({k: set(result.tables[k]["kind"]) for k in ("sts", "retrieval", "geometry", "pca")}
            == dict.fromkeys(("sts", "retrieval", "geometry", "pca"), {"mean"}))
    assert set(result.tables["probes"]["of"]) == {"mean", "encoder"}
    assert "predictability" not in result.tables
    assert result.folder.parts[-2:] == ("baseline", "seed0")


def test_a_missing_s2dm_is_an_error_that_leaves_no_record(encoder_folder, place):
    system = config(encoder_folder, variant="s2dm_pos")
    with pytest.raises(
            MissingData,
            match="s2dm_pos-refined.seed0.checkpoint is not there: train the S2DM first, with "
            "nbs/03_pretrain"):
        analyse(system)
    assert not system.folder("analyse").exists()
    assert (set(analyse(config(encoder_folder, variant="s2dm_pos", analyses="gradients")).tables)
            == {"gradients"})
    with pytest.raises(MissingData, match="small|real-s"):
        analyse(AnalyseConfig(model="real-s", analyses="sts"))


def test_an_s2dm_of_another_encoder_is_refused(encoder_folder, place):
    encoder, system = load_encoder(encoder_folder), config(encoder_folder)
    save_s2dm(system, encoder)
    file = system.folder("pretrain") / "checkpoint" / "encoder.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | dict(revision="another"))
    with pytest.raises(DataError, match="trained on encoder"): analyse(system)


def test_controls_have_weights_of_their_own(encoder_folder, place):
    encoder, system = load_encoder(encoder_folder), config(encoder_folder)
    save_s2dm(system, encoder)
    y = {
        c: system_vectors(config(encoder_folder, control=c), encoder)(
            ["Anna mended two boxes."], ("y",))["y"]
        for c in ("none", "untrained", "trainable")}
    assert torch.equal(y["none"], y["trainable"])
    # the toy S2DM is narrower than the system, whose size the control has
    assert (y["none"].shape[-1], y["untrained"].shape[-1]) == (8, 200)
    assert torch.equal(
        y["untrained"],
        system_vectors(config(encoder_folder, control="untrained"), encoder)(
            ["Anna mended two boxes."], ("y",))["y"])
    assert (config(encoder_folder, control="untrained").folder("analyse").parts[-2]
            == "s2dm_sp-refined-untrained")


def test_predictions_of_other_questions_are_refused(encoder_folder, place):
    system = config(encoder_folder, variant="baseline", analyses="answers")
    write_json(system.folder("evaluate") / "predictions.synthetic.svo.json", {"q": "x"})
    with pytest.raises(DataError, match="predictions.synthetic.svo.json: no prediction for"):
        analyse(system)


def test_places_that_do_not_fit_are_refused(encoder_folder, place):
    "And without places the texts are looked for, which the tables say."
    system = config(encoder_folder, variant="baseline", analyses="answers", languages=("svo",))
    folder, rows = system.folder("evaluate"), Synthetic().reading("svo")
    said = {i: a["text"][0] for i, a in zip(rows["id"][:], rows["answers"][:])}
    write_json(folder / "predictions.synthetic.svo.json", said)
    (folder / "spans.synthetic.svo.json").unlink(missing_ok=True)
    assert set(analyse(system).tables["boundaries"]["placed"]) == {"text"}
    write_json(folder / "spans.synthetic.svo.json", dict.fromkeys(said, [0, 1, 0.5]))
    with pytest.raises(DataError, match="spans.synthetic.svo.json, question .* stands at 0 to 1"):
        analyse(system)


def test_an_analysis_that_fails_leaves_the_last_one(encoder_folder, place, monkeypatch):
    system = config(encoder_folder, variant="baseline", analyses=("gradients", "geometry"), seed=7)
    folder = analyse(system).folder
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert {"gradients.csv", "geometry.csv", "metrics.json"} <= before.keys()

    def stopped(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(s2dm.analysis, "_geometry", stopped)
        with pytest.raises(KeyboardInterrupt): analyse(system)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    less = analyse(config(encoder_folder, variant="baseline", analyses="gradients", seed=7))
    assert {p.name for p in less.folder.iterdir()} == {
        "config.json",
        "metrics.json",
        "gradients.csv",
    }


def test_another_parser(encoder_folder, place, monkeypatch):
    """Data sets without gold trees are parsed by what the caller names, once; without a parser the
    table says so."""
    rows, calls = Synthetic().reading("svo"), []

    def parsers(language):
        if language != "de": return None
        calls.append(language)
        return GoldParser({c: [(0, len(c), "S")] for c in rows["context"][:]})

    monkeypatch.setattr(s2dm.analysis, "questions_of", lambda *_: rows)
    system = config(
        encoder_folder, variant="baseline", analyses="answers", datasets="xquad", languages="de,zh")
    result = analyse(system, parsers=parsers)
    assert result.tables["constituents"]["lang"].tolist() == ["de"] and calls == ["de"]
    assert any(m.startswith("constituents of xquad.zh: no parser") for m in result.missing)


def test_monolingual_questions_are_the_sources_in_another_language(place):
    theirs, ours = read_squad(generated_questions("sov_case")), Synthetic().reading("svo", "train")
    assert len(theirs) == len(ours) == 12 and theirs["id"][:] == ours["id"][:]
    assert not set(theirs["question"][:]) & set(ours["question"][:])


def test_a_reference_is_trained_and_found(encoder_folder, place):
    "A few steps are enough to see where everything goes."
    wanted = ReferenceConfig(
        model=encoder_folder, datasets="synthetic", language="sov_case", max_steps=2, batch=4,
        max_length=200, stride=40, query=40)
    folder = train_reference(wanted)
    assert folder.parts[-2:] == ("sov_case", "seed0")
    assert (folder / "checkpoint" / "reader.json").is_file()
    answers = read_answers(folder, "synthetic.sov_case", Synthetic().reading("sov_case"))
    assert all(isinstance(answer, Answer) for answer in answers.values()) # with places
    with pytest.raises(ParameterError, match="language='fr' is not possible"):
        train_reference(ReferenceConfig(model=encoder_folder, datasets="bipar", language="fr"))
    with pytest.raises(ParameterError): ReferenceConfig(variant="s2dm_sp")


def test_gradients_explain_the_ablation():
    table = gradient_table()
    norm = table.set_index(["edition", "loss", "module"])["norm"]
    for edition in ("paper", "released", "refined"):
        for loss in ("POS", "STL_depth", "STL_distance", "WPL"):
            assert (norm[edition, loss, "mu_y"] == norm[edition, loss, "kappa"]
                    == norm[edition, loss, "decoder"] == 0)
        for loss in ("RL", "CRL", "SDL", "KL_y"):
            # the uniform prior has no direction
            assert norm[edition, loss, "mu_y"] > 0 or loss == "KL_y"
        for loss in ("SDL", "KL_y"):
            assert norm[edition, loss, "mu_z"] == norm[edition, loss, "decoder"] == 0
        assert norm[edition, "KL_y", "kappa"] > 0
        assert norm[edition, "POS", "mu_z"] > 0
        assert norm[edition, "POS", "tag head"] > 0
        assert (norm[edition, "STL_distance", "mu_z"] > 0) == (edition == "refined")
    assert (norm["released", "STL_distance", "distance probe"] > 0
            == norm["released", "STL_distance", "tree probe"])
    state = torch.get_rng_state()
    assert table.equals(gradient_table()) and torch.equal(state, torch.get_rng_state())


def test_an_encoder_that_is_cut_is_analysed_as_it_was_read_with():
    "Not the whole one: its states are others."
    for layer, layers in ((0, 4), (2, 2)):
        vectors = system_vectors(AnalyseConfig(variant="baseline", layer=layer))
        assert vectors.encoder.model.config.num_hidden_layers == layers
