"""Fine-tuning: what is trained and what is not, kills, refusals, the S2DM that a reader needs, the
paper's settings, English questions alone.
"""
import json
import re
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import s2dm.finetune
import s2dm.pretrain
from s2dm.core import DataError, MissingData, ParameterError, seed_everything, write_json
from s2dm.encoder import load_encoder
from s2dm.features import TrainingBatches
from s2dm.finetune import (
    FinetuneConfig, finetune, load_questions, new_reader, pretrained_s2dm)
from s2dm.model import ABLATIONS, S2DM
from s2dm.pretrain import PretrainConfig, checkpoint_for, model_settings, pretrain_missing
from s2dm.reader import S2DMReader
from s2dm.reading import READING
from s2dm.systems import ENCODERS
from s2dm.toy import random_sentences, save_toy_encoder, save_toy_questions, save_toy_s2dm
from s2dm.treebanks import split_groups

def save_encoder(folder, **sizes):
    return load_encoder(save_toy_encoder(folder, feed_forward=32, positions=128, **sizes), "cpu")


save_s2dm = partial(save_toy_s2dm, seed=7)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "A folder with an encoder, an S2DM for it, and questions."
    folder = tmp_path_factory.mktemp("parts")
    save_s2dm(folder / "s2dm", save_encoder(folder / "encoder"))
    save_toy_questions(folder / "questions.json")
    return folder


def config(parts, **settings):
    there = dict(
        model=str(parts / "encoder"), data=str(parts / "questions.json"),
        dev=str(parts / "questions.json"))
    if settings.get("variant") != "baseline": there["s2dm"] = str(parts / "s2dm")
    return FinetuneConfig(
        **there | dict(
            max_length=60, stride=8, query=24, batch=4, epochs=2, learning_rate=1e-3, log_every=2,
            checkpoint_seconds=0) | settings)


# What is trained

@pytest.mark.parametrize("settings, semantic, encoder", [
    (dict(), "frozen", "trained"),
    (dict(edition="released"), "frozen", "trained"),
    (dict(control="trainable"), "trained", "trained"),
    (dict(control="untrained"), "random", "trained"),
    (dict(freeze_encoder=True), "frozen", "frozen"),
    (dict(variant="baseline"), None, "trained"),
    (dict(precision="float32"), "frozen", "trained"),
    (dict(precision="bfloat16"), "frozen", "trained")])
def test_what_is_trained_is_saved_and_what_is_frozen_stays(parts, settings, semantic, encoder):
    "Bit by bit, from the files."
    c = config(parts, **settings)
    start = new_reader(c).state_dict()
    done = finetune(c)
    own = load_file(done.folder / "checkpoint/reader.safetensors")
    before = load_file(parts / "encoder/model.safetensors")
    loaded = S2DMReader.from_pretrained(done.folder / "checkpoint", "cpu")
    # in whatever precision it learned, on every machine
    assert done.reader.reads_in() == loaded.reads_in()
    after = loaded.encoder.state_dict()
    assert {torch.equal(after[k], before[k]) for k in before} == {encoder == "frozen"}
    mu = {
        k.removeprefix("posteriors.mu_y"): t
        for k, t in load_file(parts / "s2dm/model.safetensors").items()
        if k.startswith("posteriors.mu_y")}
    assert {k for k in own if not k.startswith("semantic")} == {"head.weight", "head.bias"}
    assert len(own) == (2 if semantic is None else 2 + len(mu))
    if semantic:
        assert {torch.equal(own[f"semantic{k}"], mu[k]) for k in mu} == {semantic == "frozen"}
    if semantic == "random":
        # it stays as random as it was
        assert all(torch.equal(own[f"semantic{k}"], start[f"semantic{k}"]) for k in mu)
    assert not torch.equal(own["head.weight"], start["head.weight"])
    assert done.reader.config.head == c.head
    assert done.reader.config.max_length == 60
    assert done.metrics["recovered"]["exact"] == 1


def test_the_untrained_control_needs_no_trained_s2dm(parts):
    """It is the S2DM from which the training of its seed starts, network by network, with whatever
    decoder."""
    encoder = load_encoder(str(parts / "encoder"), "cpu")
    c = FinetuneConfig(model=str(parts / "encoder"), control="untrained", seed=3)
    assert not checkpoint_for(c).exists()
    pretrain_missing(c) # nothing is trained
    assert not checkpoint_for(c).exists()
    found = pretrained_s2dm(c.system, encoder).posteriors.state_dict()
    settings = model_settings(PretrainConfig(model=c.model, seed=3), encoder)
    seed_everything(3)
    for name, weight in S2DM(settings).posteriors.state_dict().items():
        assert torch.equal(found[name], weight), name


def test_training_answers_questions(parts):
    "The loss falls, and the toy questions are answered, with the paper's head."
    done = finetune(config(parts, epochs=40, learning_rate=1e-2, evaluate_every=100))
    history, last = done.metrics["history"], done.metrics["evaluations"][-1]
    assert history["loss"][0] > 2 > .5 > history["loss"][-1]
    assert last["em"] > 90
    assert last["f1"] >= last["em"]
    assert (history["loss"]
            == pytest.approx([(a + b) / 2 for a, b in zip(history["start"], history["end"])]))
    again = S2DMReader.from_pretrained(done.folder / "checkpoint", "cpu")
    assert again.answer("Who made the cake?", "so so alan made a cake.")[0][:3] == ("alan", 6, 10)
    assert again.facts == done.reader.facts
    card = (done.folder / "checkpoint/README.md").read_text()
    assert "20 in English" in card
    assert re.search(r"training..: \d+ steps of \d+ windows, learning rate [\d.e-]+ \(head", card)
    recorded = json.loads((done.folder / "config.json").read_text())["parameters"]
    assert recorded["learning_rate"] == .01
    assert json.loads((done.folder / "metrics.json").read_text())["s2dm"].startswith("sha256:")


def test_systems_start_from_the_same_encoder_and_see_the_same_batches(parts):
    """Baseline and S2DM differ in their heads alone; the order of the questions depends on the seed
    alone."""
    plans = [
        TrainingBatches(
            new_reader(c).windows(load_questions(c.data)), c.batch, c.seed).plan(0)
        for c in (config(parts), config(parts, variant="baseline"), config(parts, seed=1))]
    assert plans[0] == plans[1] != plans[2]


def test_a_short_encoder_reads_short_windows(parts):
    assert new_reader(config(parts, max_length=384)).config.max_length == 128


def test_a_long_context_is_trained_on_in_windows(parts, tmp_path):
    """Those without the answer point to their first subword; padding and no answer at all do not
    make the loss infinite."""
    write_json(tmp_path / "long.json", dict(data=[dict(
        paragraphs=[dict(context="so it went on, " * 30 + "ada", qas=[dict(
            id="1", question="Who?", answers=[dict(text="ada", answer_start=450)])])])]))
    done = finetune(config(parts, data=str(tmp_path / "long.json"), dev="", variant="baseline"))
    assert done.metrics["windows"] > 5
    assert done.metrics["questions"] == 1
    assert not done.metrics["evaluations"]
    assert done.fit.history["loss"].max() < 10


# Kills and refusals

SCRIPT = """
import json, sys, time
import torch
import s2dm.features
torch.set_num_threads(int(sys.argv[2])) # another number of threads may add up in another order
from s2dm.finetune import FinetuneConfig, finetune
load = s2dm.features.TrainingBatches.load
def slow(*args):
    time.sleep(.03)
    return load(*args)
s2dm.features.TrainingBatches.load = slow
finetune(FinetuneConfig(**json.loads(sys.argv[1])))
"""


def test_a_run_that_is_killed_ends_as_one_that_was_not(parts, tmp_path, monkeypatch):
    c, rng = config(parts, epochs=10, evaluate_every=20), random.Random(0)
    whole = finetune(c)
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "killed"))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(c.as_dict()), str(torch.get_num_threads())],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    checkpoint = c.folder("finetune") / "fit.safetensors"
    while process.poll() is None and not checkpoint.exists(): time.sleep(.002)
    time.sleep(rng.random() * .3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (c.folder("finetune") / "checkpoint").exists()
    assert not (c.folder("finetune") / "metrics.json").exists()
    again = finetune(c)
    for name in ("reader.safetensors", "reader.json", "README.md", "encoder/model.safetensors"):
        assert ((whole.folder / "checkpoint" / name).read_bytes()
                == (again.folder / "checkpoint" / name).read_bytes()), name
    def drop(metrics): return {k: v for k, v in metrics.items() if k != "seconds"}
    assert drop(whole.metrics) == drop(again.metrics)


def test_phrases_take_the_place_of_questions_and_articles_go(parts, monkeypatch):
    "As many steps as without; the reader's card says what was learned."
    sentences = random_sentences(groups=60)
    monkeypatch.setattr(s2dm.finetune, "load_sentences", lambda: sentences)
    seen = {}
    def windows(reader, questions, **more):
        seen.update({row["id"]: row for row in questions})
        return make_windows(reader, questions, **more)

    make_windows = S2DMReader.windows
    plain = finetune(config(parts, variant="baseline", seed=11))
    with monkeypatch.context() as patch:
        patch.setattr(S2DMReader, "windows", windows)
        mixed = finetune(config(parts, variant="baseline", seed=12, phrases=.5, articles="drop"))
    assert mixed.metrics["questions"] == 2 * plain.metrics["questions"]
    assert mixed.metrics["steps"] == plain.metrics["steps"]
    learned = split_groups(sentences["group"][:], s2dm.finetune.LEARNED_SHARE)
    asked = {int(id.removeprefix("phrase")) for id in seen if id.startswith("phrase")}
    assert len(asked) == plain.metrics["questions"] and max(asked) < learned.sum()
    texts = {seen[f"phrase{number}"]["context"] for number in asked}
    assert texts <= set(np.array(sentences["text"][:])[learned])
    said = mixed.reader.facts
    assert "50% of the questions ask for phrases" in said["training"]
    assert "answers without leading articles" in said["training"]
    assert said["questions"].startswith(f"{plain.metrics['questions']} in English")
    limited = finetune(config(parts, variant="baseline", seed=13, phrases=.5, max_steps=3))
    assert limited.metrics["steps"] == 3


def test_a_finished_run_is_not_run_again_and_other_parameters_are_refused(parts):
    done = finetune(config(parts))
    before = {p.name: p.read_bytes() for p in done.folder.iterdir() if p.is_file()}
    with pytest.raises(ParameterError, match="learning_rate was 0.001 and is 0.002.*fresh=True"):
        finetune(config(parts, learning_rate=2e-3))
    assert before == {p.name: p.read_bytes() for p in done.folder.iterdir() if p.is_file()}
    same = finetune(config(parts))
    assert same.metrics == done.metrics and same.fit.steps == 10
    assert before == {p.name: p.read_bytes() for p in done.folder.iterdir() if p.is_file()}
    assert (finetune(config(parts, learning_rate=2e-3, fresh=True)).fit.history["loss"].iloc[-1]
            != done.fit.history["loss"].iloc[-1])
    assert config(parts, freeze_encoder=True).folder("finetune") != done.folder


def test_another_s2dm_or_encoder_under_the_same_name_is_refused(parts, tmp_path):
    encoder = save_encoder(tmp_path / "encoder")
    save_s2dm(tmp_path / "s2dm", encoder)
    save_toy_questions(tmp_path / "questions.json")
    finetune(config(tmp_path))
    save_s2dm(tmp_path / "s2dm", encoder, seed=8)
    with pytest.raises(ParameterError, match="s2dm was 'sha256:"): finetune(config(tmp_path))
    other = save_encoder(tmp_path / "encoder", seed=1)
    with pytest.raises(DataError, match="trained on encoder .* with revision"):
        finetune(config(tmp_path))
    save_s2dm(tmp_path / "s2dm", other)
    with pytest.raises(ParameterError, match="encoder was "): finetune(config(tmp_path))
    save_toy_questions(tmp_path / "questions.json", 19)
    with pytest.raises(ParameterError, match="questions was 20 and is 19"):
        finetune(config(tmp_path))


# The S2DM that a reader needs

def test_an_s2dm_that_is_missing_is_asked_for(parts):
    "With the reader's model, variant, edition and seed; half a folder counts as missing."
    encoder = load_encoder(str(parts / "encoder"), "cpu")
    c = config(parts, s2dm="", variant="s2dm_pos", edition="refined", seed=3)
    wanted = "s2dm_pos-refined/seed3/checkpoint is not there: train the S2DM first, with nbs/03"
    with pytest.raises(MissingData, match=wanted): finetune(c)
    save_s2dm(checkpoint_for(c), encoder, variant=c.variant, edition=c.edition)
    assert pretrained_s2dm(c.system, encoder, c.s2dm).config.variant == "s2dm_pos"
    (checkpoint_for(c) / "encoder.json").unlink()
    with pytest.raises(MissingData, match=wanted): pretrained_s2dm(c.system, encoder, c.s2dm)
    assert pretrained_s2dm(config(parts, variant="baseline").system, encoder) is None
    with pytest.raises(MissingData, match="encoder.json is not there"):
        pretrained_s2dm(c.system, encoder, str(parts / "encoder"))


def test_the_s2dm_is_trained_by_the_runs_own_function_where_it_is_missing(
        parts, monkeypatch, capsys):
    encoder = load_encoder(str(parts / "encoder"), "cpu")
    asked = []

    def pretrain(config):
        asked.append(config)
        given = dict(variant=config.variant, edition=config.edition)
        save_s2dm(config.folder("pretrain") / "checkpoint", encoder, **given)

    monkeypatch.setattr(s2dm.pretrain, "pretrain", pretrain)
    c = config(parts, s2dm="", variant="s2dm_sp", edition="refined", seed=4)
    for _ in range(2): pretrain_missing(c)
    pretrain_missing(config(parts, variant="baseline"))
    pretrain_missing(config(parts, s2dm="elsewhere"))
    found = [(a.model, a.variant, a.edition, a.seed) for a in asked]
    assert found == [(c.model, "s2dm_sp", "refined", 4)]
    assert capsys.readouterr().out.count("training the S2DM first") == 1


def test_from_an_encoder_to_a_reader(real, parts, monkeypatch):
    "Pre-training in earnest, if for five steps only."
    small = dict(
        collections="partut-it", max_steps=5, batch_pairs=4, selection="none",
        overrides="latent_width=8,mlp_width=8,decoder_width=8")
    monkeypatch.setattr(s2dm.pretrain, "PretrainConfig", partial(PretrainConfig, **small))
    monkeypatch.setattr("s2dm.pretrain.TESTS", ()) # what is measured after it
    c = config(parts, s2dm="", variant="vgvae_crl", max_steps=5)
    pretrain_missing(c)
    done = finetune(c)
    assert done.fit.steps == 5 and done.reader.s2dm_config.latent_width == 8
    assert done.reader.s2dm_config.losses == ABLATIONS["vgvae_crl"]
    assert done.folder.parts[-2:] == ("vgvae_crl-refined", "seed0")
    assert done.reader.answer("Who?", "ada made it.")


# Settings

def test_the_papers_settings():
    """Section 4.3; the others have mBERT's. Values may come as text, as from a terminal, or as
    None, which is the encoder's own."""
    for model, epochs, batch, rate in (
            ("mbert", 3, 32, 2e-5),
            ("xlm100", 2, 16, 3e-5),
            ("xlmr", 3, 32, 2e-5),
            ("google-bert/bert-base-multilingual-cased", 3, 32, 2e-5)):
        c = FinetuneConfig(model=model, epochs=None, batch=None)
        assert c.epochs == epochs
        assert c.batch == batch
        assert c.learning_rate == rate
        assert c.data == ("squad/train",)
        assert c.dev == ("squad/dev",)
        assert c.max_length == 384
        assert c.stride == 128
        assert c.query == 64
    assert FinetuneConfig(model="xlm100", learning_rate="1e-4", epochs="5").learning_rate == 1e-4
    siblings = {f"small-{seed}" for seed in range(1, 5)}
    assert set(ENCODERS) - siblings == {
        "mbert", "xlm100", "xlmr", "e5", "small", "real-s", "real-m"}
    assert FinetuneConfig(edition="released").head == "concat"
    assert FinetuneConfig().head == "semantic"
    assert FinetuneConfig(variant="baseline", edition="released").head == "baseline"


def test_every_system_has_a_name_of_its_own():
    systems = ([dict(variant=v, edition=e, control=k, head=h, freeze_encoder=f)
                for v in ("s2dm_sp", "vgvae_crl")
                for e in ("paper", "released", "refined")
                for k in ("none", "untrained", "trainable")
                for h in ("semantic", "concat")
                for f in (True, False)]
               + [dict(variant="baseline"), dict(variant="baseline", freeze_encoder=True)])
    assert len({FinetuneConfig(**s).key for s in systems}) == len(systems)


@pytest.mark.parametrize("settings, says", [
    (dict(variant="baseline", head="concat"),
     "head='concat' is not possible with variant='baseline'"),
    (dict(head="baseline"), "head='baseline' is not possible with variant='s2dm_sp'"),
    (dict(variant="baseline", control="untrained"), "has no S2DM"),
    (dict(control="random"), "choose one of none, untrained, trainable"),
    (dict(variant="s2dm_pso"), "did you mean 's2dm_pos'"),
    (dict(batch=0), "batch is an int from 1"),
    (dict(lr=1), "unknown parameter 'lr'"),
    (dict(model=["a"]), "model="),
    (dict(freeze_encoder="maybe"), "freeze_encoder='maybe'"),
    (dict(seed=-1), "seed is an int from 0")])
def test_impossible_settings(settings, says):
    with pytest.raises(ParameterError, match=says): FinetuneConfig(**settings)


def test_sizes_that_leave_no_room(parts):
    with pytest.raises(ParameterError, match="leave .* subwords for the context"):
        finetune(config(parts, query=50))


# Questions

def test_questions_from_files_and_what_is_none(parts, tmp_path):
    both = load_questions((str(parts / "questions.json"), str(parts / "questions.json")))
    assert len(both) == 40
    assert both[20]["context"] == both[0]["context"]
    assert both["lang_context"][0] == "en"
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="bad.json: found nothing"):
        load_questions((str(tmp_path / "bad.json"),))
    for names, says in (
            ((), "no questions to train on"),
            (("squd/train",), "did you mean 'squad/train'"),
            (("xquad/train",), "choose one of test"),
            (("nowhere.json",), "questions='nowhere.json' is not possible")):
        with pytest.raises(ParameterError, match=says): load_questions(names)
    with pytest.raises(ParameterError, match="some questions have the same id"):
        finetune(config(parts, dev=f"{parts / 'questions.json'},{parts / 'questions.json'}"))


def test_the_table_of_settings_says_what_the_presets_are():
    cells = json.loads((ROOT / "nbs/04f_finetune.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(c["source"]) for c in cells]
    rows = next(t for t in texts if t.startswith("## Settings")).splitlines()
    rows = [
        [cell.strip() for cell in r.strip("|").split("|")]
        for r in rows
        if r.startswith("|") and r.count("|") == 6][2:]
    said = {
        name: (int(epochs), int(batch), float(rate))
        for names, epochs, batch, rate, _ in rows
        for name in names.removesuffix(", ours").split(", ")}
    def asked(name):
        return (
            FinetuneConfig(model=name).epochs, FinetuneConfig(model=name).batch,
            FinetuneConfig(model=name).learning_rate)
    assert said.pop("others") == asked("some/encoder") and {*said, "xlmr"} == set(ENCODERS)
    assert said == {name: asked(name) for name in said}


def test_presets_name_english_questions():
    for name in {
            n for preset in (encoder.finetune for encoder in ENCODERS.values())
            for n in (*preset["data"].split(","), *preset["dev"].split(","))}:
        corpus, part = name.split("/")
        assert ((corpus, part) in (("synthetic", "train"), ("synthetic", "dev"))
                or READING[corpus][0] == ("en",) and part in READING[corpus][1])


def test_real_english_questions(real):
    "Two corpora in one, as they are."
    questions = load_questions(("squadshifts/new_wiki", "qamr/dev"))
    assert len(questions) > 20_000
    assert set(questions["lang_context"][:]) == set(questions["lang_question"][:]) == {"en"}
    for row in questions.select(range(0, len(questions), 4001)):
        for text, at in zip(row["answers"]["text"], row["answers"]["answer_start"]):
            assert row["context"][at:at + len(text)] == text


# What learns, and what is computed once

@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    "The same parts with an encoder of three layers."
    folder = tmp_path_factory.mktemp("deep")
    save_s2dm(folder / "s2dm", save_encoder(folder / "encoder", layers=3))
    save_toy_questions(folder / "questions.json")
    return folder


def learned(deep, **settings):
    reader = new_reader(config(deep, variant="baseline", **settings))
    return {
        ".".join(name.split(".")[:4])
        for name, p in reader.encoder.named_parameters()
        if p.requires_grad}


def test_what_is_frozen_does_not_learn(deep):
    layers = {f"encoder.layer.{i}" for i in range(3)}
    everything = learned(deep)
    assert layers <= {".".join(n.split(".")[:3]) for n in everything}
    assert any(n.startswith("embeddings") for n in everything)
    assert not any(n.startswith("embeddings") for n in learned(deep, freeze_embeddings=True))
    upper = {".".join(n.split(".")[:3]) for n in learned(deep, freeze_layers=2)}
    assert upper - {"pooler.dense.weight", "pooler.dense.bias"} == {"encoder.layer.2"}
    with pytest.raises(
            ParameterError,
            match="freeze_layers=3 is not possible: expected fewer than the 3 layers"):
        new_reader(config(deep, freeze_layers=3))


@pytest.mark.parametrize("settings, rate", [
    (dict(), 0.), (dict(dropout="own"), .1), (dict(dropout="0.3"), .3), (dict(dropout=.25), .25)])
def test_dropout_is_set_and_recorded(deep, settings, rate):
    "A processor's default is 0; BERT's own is .1."
    reader = new_reader(config(deep, **settings)) # papermill gives text or a number
    found = {m.p for m in reader.encoder.modules() if isinstance(m, torch.nn.Dropout)}
    assert found == {rate} and reader.facts["dropout"] == rate


@pytest.mark.parametrize("value", ["1", "-0.1", "none", "nan"])
def test_impossible_dropout(deep, value):
    with pytest.raises(ParameterError, match="dropout is auto, own, or a number from 0 to 1"):
        config(deep, dropout=value)


@pytest.mark.parametrize("variant", ["baseline", "s2dm_sp"])
def test_kept_states_train_the_reader_that_the_whole_encoder_trains(
        deep, variant, tmp_path, monkeypatch):
    "Up to the rounding of the states to half precision; and they are computed once."
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "kept"))
    given = dict(variant=variant, freeze_layers=2, precision="float32", epochs=3)
    kept = finetune(config(deep, **given))
    files = list((tmp_path / "data" / "cache" / "states").glob("*.bin"))
    assert files
    monkeypatch.setattr("s2dm.layers._compute", lambda *args: pytest.fail("computed again"))
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "again"))
    again = finetune(config(deep, **given, seed=1))
    assert again.fit.steps == kept.fit.steps
    monkeypatch.setattr("s2dm.reader.S2DMReader.lower_states", lambda *args, **options: None)
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "whole"))
    whole = finetune(config(deep, **given))
    assert (kept.fit.history["loss"] - whole.fit.history["loss"]).abs().max() < 5e-3


def test_a_partly_frozen_reader_is_saved_as_what_learned(deep, tmp_path, monkeypatch):
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    trained = finetune(config(deep, freeze_layers=2))
    folder = trained.folder / "checkpoint"
    assert not (folder / "encoder").exists()
    names = set(load_file(folder / "encoder.safetensors"))
    assert names and all(n.startswith(("encoder.layer.2", "pooler")) for n in names)
    assert not any(
        "layer.1" in n or "embeddings" in n for n in load_file(trained.folder / "fit.safetensors"))
    again = S2DMReader.from_pretrained(folder, "cpu")
    question, context = "Who made the boat?", "so so grace made a boat."
    assert again.answer(question, context) == trained.reader.answer(question, context)
    assert again.lower_layers == 2 and again.base == trained.reader.base
    once_more = S2DMReader.from_pretrained(again.save_pretrained(tmp_path / "copy"), "cpu")
    assert once_more.answer(question, context) == again.answer(question, context)

    saved = json.loads((folder / "reader.json").read_text())
    saved["encoder"]["revision"] = "sha256:other"
    write_json(folder / "reader.json", saved)
    with pytest.raises(DataError, match="was trained on .*sha256:other; here it is"):
        S2DMReader.from_pretrained(folder, "cpu")


def test_the_best_epoch_on_dev_is_kept_where_the_released_code_keeps_it(
        deep, tmp_path, monkeypatch):
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    scores = iter([dict(em=10., f1=50.), dict(em=20., f1=40.)])
    monkeypatch.setattr("s2dm.finetune._Unseen.score", lambda *args: next(scores))
    found = finetune(config(deep, keep="best"))
    assert found.fit.best_step == found.fit.steps // 2
    with pytest.raises(ParameterError, match="keep='best' is not possible without dev"):
        config(deep, keep="best", dev="")


def test_edition_released_fine_tunes_as_its_code_does(deep):
    released = FinetuneConfig(model="mbert", edition="released")
    assert (released.epochs, released.learning_rate, released.keep) == (2, 3e-5, "best")
    paper = FinetuneConfig(model="mbert", edition="paper")
    assert (paper.epochs, paper.learning_rate, paper.keep) == (3, 2e-5, "last")
    assert new_reader(config(deep, edition="released")).config.n_best == 10
    assert new_reader(config(deep)).config.n_best == 20


@pytest.mark.parametrize("layers", [0, 2])
def test_adapters_learn_alone_and_are_saved_as_the_matrices_they_changed(
        deep, layers, tmp_path, monkeypatch):
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    given = dict(variant="baseline", adapter="lora", rank=4, freeze_layers=layers)
    trained = finetune(config(deep, **given))
    checkpoint = load_file(trained.folder / "fit.safetensors")
    assert all("lora_" in name or name.startswith("model.head.") for name in checkpoint)
    folder = trained.folder / "checkpoint"
    matrices = load_file(folder / "encoder.safetensors")
    assert {name.split(".")[2] for name in matrices} == {str(i) for i in range(layers, 3)}
    assert len(matrices) == 6 * (3 - layers) # query, key, value, output, feed-forward in and out
    assert all(name.endswith("weight") for name in matrices)
    again = S2DMReader.from_pretrained(folder, "cpu")
    question, context = "Who made the boat?", "so so grace made a boat."
    assert again.answer(question, context) == trained.reader.answer(question, context)
    finished = finetune(config(deep, **given)) # merged once more, not twice
    assert finished.reader.answer(question, context) == again.answer(question, context)


def test_adapters_without_peft(deep, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingData, match="adapter='lora' needs the package peft"):
        new_reader(config(deep, variant="baseline", adapter="lora"))


def test_a_run_says_its_precision_and_goes_on_in_no_other(deep, tmp_path, monkeypatch):
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    half = [False]
    for module in ("s2dm.fit", "s2dm.layers"):
        monkeypatch.setattr(f"{module}.has_bfloat16", lambda device: half[0])
    given = dict(variant="baseline", freeze_layers=2)
    assert finetune(config(deep, **given)).metrics["precision"] == "float32"
    half[0] = True
    with pytest.raises(ParameterError, match="precision was 'float32' and is 'bfloat16'"):
        finetune(config(deep, **given))
    assert finetune(config(deep, **given, precision="float32")).metrics["precision"] == "float32"


def test_an_encoder_that_is_cut_is_another_encoder(deep, tmp_path, monkeypatch):
    "S2DM and reader stand on the same layers; a saved reader opens them again."
    monkeypatch.setenv("S2DM_RUNS", str(tmp_path / "runs"))
    name = str(deep / "encoder")
    cut = load_encoder(name, "cpu", layers=2)
    assert cut.record["layers"] == 2 and cut.revision.endswith(", lower 2 layers")
    c = config(deep, s2dm="", layer=2, freeze_layers=1)
    with pytest.raises(MissingData, match="-layer2/s2dm_sp-refined/seed0/checkpoint is not there"):
        finetune(c)
    save_s2dm(checkpoint_for(c.system), cut)
    done = finetune(c)
    assert done.folder.parts[-3].endswith("encoder-layer2")
    assert len(done.reader.encoder.encoder.layer) == 2
    again = S2DMReader.from_pretrained(done.folder / "checkpoint", "cpu")
    question, context = "Who made the boat?", "so so grace made a boat."
    assert again.answer(question, context) == done.reader.answer(question, context)
    assert again.base == done.reader.base and again.base["layers"] == 2
    with pytest.raises(DataError, match="trained on encoder"):
        finetune(config(deep, s2dm=str(checkpoint_for(c.system))))
    with pytest.raises(ParameterError, match="layer=4 is not possible: expected 1 to 3"):
        load_encoder(name, "cpu", layers=4)


# A second view

@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    "A folder with an encoder whose tokenizer has a unigram model, and questions."
    from test_kinds import model, unigram

    folder = tmp_path_factory.mktemp("pieces")
    tokenizer = unigram("<s>", before="<s>")
    seed_everything(5)
    model("XLMRoberta", max_position_embeddings=140)(tokenizer).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    save_toy_questions(folder / "questions.json")
    return folder


def weighed(history, consistency): # the loss of each line, from its terms
    return .5 * (history["start"] + history["end"]) + consistency * history["consistency"]


@pytest.mark.parametrize("second, frozen", [("switched", 1), ("subwords", 0)])
def test_two_views_are_learned_and_drawn_together(pieces, second, frozen, tmp_path, monkeypatch):
    """The loss is that of its terms; both views are read; the same seed trains the same reader;
    with a large weight the predictions differ less."""
    words = {"the": ["das"], "of": ["von"], "is": ["ist"], "in": ["auf"], "a": ["ein"]}
    monkeypatch.setattr("s2dm.finetune.load_dictionaries", lambda encoder: dict(de=words))
    given = dict(variant="baseline", second=second, second_share=.8, freeze_layers=frozen, epochs=4)

    def trained(name, **more):
        monkeypatch.setenv("S2DM_RUNS", str(tmp_path / name))
        return finetune(config(pieces, **given, **more))

    one, again = trained("one"), trained("again")
    history = one.fit.history
    assert (history["consistency"] > 0).all()
    assert history["loss"].to_numpy() == pytest.approx(weighed(history, 1.).to_numpy(), rel=1e-4)
    assert history["loss"].tolist() == again.fit.history["loss"].tolist()
    together = trained("together", consistency=100.).fit.history
    assert together["consistency"].iloc[-1] < history["consistency"].iloc[-1]
    assert together["loss"].to_numpy() == pytest.approx(
        weighed(together, 100.).to_numpy(), rel=1e-4)


def test_one_view_is_learned_as_before(deep, tmp_path, monkeypatch):
    "A second view that is the first, and no weight: the losses of one view."
    monkeypatch.setattr("s2dm.finetune.load_dictionaries", lambda encoder: dict(de={}))
    lines = []
    for second in ("none", "switched"):
        monkeypatch.setenv("S2DM_RUNS", str(tmp_path / second))
        fitted = finetune(config(
            deep, variant="baseline", second=second, consistency=0., precision="float32")).fit
        lines.append(fitted.history["loss"].to_numpy())
    assert lines[0] == pytest.approx(lines[1], rel=1e-4)


def test_subwords_are_drawn_from_a_unigram_model_alone(deep):
    with pytest.raises(ParameterError, match="second='subwords' is not possible with"):
        finetune(config(deep, variant="baseline", second="subwords"))
