"""Kinds of encoders from end to end: an S2DM and readers are trained on each for a few steps, read
with, saved and loaded. The table in docs/encoders.md is what these tests find;
`S2DM_WRITE_DOCS=1 python -m pytest tests/test_kinds_trained.py` writes it anew."""
import json
import os
import re

import pytest
import torch
import transformers as T
from conftest import ROOT
from test_kinds import (KINDS, bytelevel, config, gemma, mbart_pieces, save_canine, save_kind,
                        sentencepiece, unigram, wordpiece, xlm_pieces, xlnet_pieces)

import s2dm.evaluation
import s2dm.finetune
import s2dm.pretrain
from s2dm.core import DataError, ParameterError, seed_everything
from s2dm.encoder import load_encoder
from s2dm.evaluation import EvaluateConfig, evaluate, read_answers
from s2dm.finetune import FinetuneConfig, finetune, load_questions, new_reader
from s2dm.model import S2DM
from s2dm.pretrain import PretrainConfig, model_settings, pretrain
from s2dm.reader import S2DMReader
from s2dm.toy import random_sentences, save_toy_questions
from s2dm.treebanks import align
from s2dm.vectors import TextVectors

PAGE = ROOT / "docs" / "encoders.md"
PIECES = {
    wordpiece: "WordPiece", sentencepiece: "SentencePiece", bytelevel: "BPE of bytes",
    unigram: "SentencePiece", xlnet_pieces: "SentencePiece, special tokens behind the text",
    mbart_pieces: "SentencePiece, language behind the text", xlm_pieces: "XLM's BPE",
    gemma: "BPE, bytes where it knows no piece, spaces as letters"}
SIZES = "latent_width=8,mlp_width=12,decoder_width=12,max_positions=16"
QUESTION, CONTEXT = "Who made the cake?", "so so alan made a cake."


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "questions.json"
    save_toy_questions(file)
    return file


@pytest.fixture(autouse=True)
def toy(monkeypatch, questions):
    "A toy treebank and toy questions take the place of what 03 and 05 would load."
    sentences = random_sentences(8)
    parallel = dict(en=sentences["forms"][:4], de=sentences["forms"][4:8])
    monkeypatch.setattr(s2dm.pretrain, "load_pairs", lambda names, languages: align(sentences))
    monkeypatch.setattr(s2dm.pretrain, "parallel_treebank", lambda *given: parallel)
    for name in ("TESTS", "NEW"): monkeypatch.setattr(s2dm.pretrain, name, ())
    asked = load_questions((str(questions),))
    monkeypatch.setattr(s2dm.evaluation, "_generated", lambda language: asked)


def pretraining(folder, **settings):
    given = dict(collections="pud", selection="none", batch_pairs=4, max_steps=3, log_every=1,
                 precision="float32", cache_precision="float32", overrides=SIZES)
    return PretrainConfig(model=str(folder), **given | settings)


def finetuning(folder, questions, **settings):
    given = dict(data=str(questions), dev=str(questions), max_length=60, stride=8, query=24,
                 batch=4, max_steps=4, learning_rate=1e-3, log_every=1, precision="float32")
    return FinetuneConfig(model=str(folder), **given | settings)


# What is found of one kind

def equal(before, after): return all(torch.equal(before[k], after[k]) for k in before)


def check_s2dm(folder):
    "It is trained, and saved as it is; its encoder stays as it was. Its checkpoint."
    settings = pretraining(folder)
    encoder = load_encoder(str(folder), "cpu")
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    seed_everything(settings.seed)
    start = S2DM(model_settings(settings, encoder)).state_dict()
    done = pretrain(settings, encoder)
    assert done.fit.steps == 3 and torch.tensor(done.fit.history.to_numpy()).isfinite().all()
    learned = done.vectors.model.state_dict()
    same = [name for name, weight in start.items() if torch.equal(weight, learned[name])]
    assert not [name for name in same if "posteriors" in name], same
    assert equal(before, encoder.model.state_dict())
    checkpoint = done.folder / "checkpoint"
    again = TextVectors.from_pretrained(checkpoint, device="cpu") # finds its encoder, too
    assert equal(learned, again.model.state_dict())
    texts = ["ab cd e", "h"]
    torch.testing.assert_close(again.semantic(texts), done.vectors.semantic(texts), atol=1e-4,
                               rtol=1e-3)
    return checkpoint


def check_reader(settings, frozen):
    """It is trained, but for what is frozen (beginnings of names in the encoder); what is saved is
    what is loaded, and can be saved again. The trained reader and its checkpoint."""
    start = {k: v.clone() for k, v in new_reader(settings).state_dict().items()}
    done = finetune(settings)
    assert done.fit.steps == 4 and torch.tensor(done.fit.history.to_numpy()).isfinite().all()
    learned = done.reader.state_dict()
    changed = {name for name, weight in start.items() if not torch.equal(weight, learned[name])}
    assert "head.weight" in changed and any(name.startswith("encoder.") for name in changed)
    assert not [n for n in changed if n.startswith("semantic.")]
    for name in frozen: assert not [n for n in changed if n.startswith(f"encoder.{name}")], name
    words = next(n for n, _ in start_of_words(done.reader))
    assert (words in changed) == (not frozen)
    checkpoint = done.folder / "checkpoint"
    again = S2DMReader.from_pretrained(checkpoint, "cpu")
    second = S2DMReader.from_pretrained(again.save_pretrained(done.folder / "second"), "cpu")
    for loaded in (again, second):
        assert equal(learned, loaded.state_dict()) and loaded.facts == done.reader.facts
        assert loaded.answer(QUESTION, CONTEXT) == done.reader.answer(QUESTION, CONTEXT)
    return done.reader, checkpoint


def start_of_words(reader): # the name of the table of words, and the table
    table = reader.encoder.get_input_embeddings().weight
    return [(name, p) for name, p in reader.named_parameters() if p is table]


def check_answers(checkpoint, questions):
    "A stretch of the context for each question, in the record of a run."
    settings = EvaluateConfig(reader=str(checkpoint), datasets="synthetic", languages="svo_post",
                              samples=100)
    done = evaluate(settings)
    row, = done.results
    assert row["questions"] == 20 and not done.missing
    asked = load_questions((str(questions),))
    answers = read_answers(done.folder, "synthetic.svo_post", asked)
    given = [answer for answer in answers.values() if answer.text]
    contexts = dict(zip(asked["id"][:], asked["context"][:]))
    for id, answer in answers.items():
        assert contexts[id][answer.start:answer.end] == answer.text
    assert len(given) > 10


def told(function, *given): # what the function returns; or None, and the message of its refusal
    try: return function(*given), "yes"
    except ParameterError as error: return None, str(error)


def findings(kind, folder, questions):
    "What an encoder of this kind can do: column -> text."
    encoder = load_encoder(str(folder), "cpu")
    table = encoder.model.get_input_embeddings()
    slow = "" if encoder.split.tokenizer.is_fast else ", slow"
    row = dict(kind=kind, tokenizer=PIECES[KINDS[kind][0]] + slow,
               model=f"`{encoder.record['kind']}`", states=encoder.width,
               embeddings=table.embedding_dim, limit=encoder.split.limit)
    s2dm, row["S2DM"] = told(check_s2dm, folder)
    trained, row["reader"] = told(check_reader, finetuning(folder, questions, s2dm=str(s2dm)), ())
    row["answers"] = told(check_answers, trained and trained[1], questions)[1]
    words = [name for name, p in encoder.model.named_parameters() if p is table.weight]
    settings = dict(variant="baseline", freeze_embeddings=True, dropout="own",
                    precision="bfloat16")
    row["freeze_embeddings"] = told(check_reader, finetuning(folder, questions, **settings),
                                    words)[1]
    settings = dict(s2dm=str(s2dm), freeze_layers=1, seed=1)
    row["freeze_layers"] = told(check_reader, finetuning(folder, questions, **settings),
                                ("embeddings", "encoder.layer.0."))[1]
    return row


@pytest.fixture(scope="module")
def found(tmp_path_factory, questions):
    "kind -> its findings; they are made when they are first asked for."
    rows = {}

    def get(kind):
        if kind not in rows:
            rows[kind] = findings(kind, save_kind(kind, tmp_path_factory.mktemp("kind")), questions)
        return rows[kind]
    return get


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_trained_read_with_saved_and_loaded(kind, found):
    row = found(kind)
    for name in ("S2DM", "reader", "answers", "freeze_embeddings"): assert row[name] == "yes", name


ELSEWHERE = "expected an encoder with `embeddings` and `encoder.layer`"
IN_ONE = "its upper layers need more than the states of the lower ones"
REFUSES_LAYERS = {
    "XLM": ELSEWHERE, "ALBERT": ELSEWHERE, "XLNet": ELSEWHERE, "T5": ELSEWHERE, "mT5": ELSEWHERE,
    "mBART": ELSEWHERE, "DeBERTa-v2 with a convolution": IN_ONE}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_frozen_or_the_kind_is_refused(kind, found):
    says = found(kind)["freeze_layers"]
    if kind not in REFUSES_LAYERS: assert says == "yes"
    else:
        assert says.startswith(f"freeze_layers is not possible with {KINDS[kind][2]}: ")
        assert REFUSES_LAYERS[kind] in says


@pytest.mark.parametrize("kind", ["T5", "DeBERTa-v2 with a convolution"])
def test_layers_are_refused_before_an_s2dm_is_opened(kind, tmp_path, questions, monkeypatch):
    monkeypatch.setattr(s2dm.finetune, "pretrained_s2dm", lambda *given: pytest.fail("opened"))
    settings = finetuning(save_kind(kind, tmp_path / "encoder"), questions, freeze_layers=1)
    with pytest.raises(ParameterError, match="^freeze_layers is not possible"): finetune(settings)
    assert not settings.folder("finetune").exists()


@pytest.mark.parametrize("kind", ["ELECTRA", "RemBERT", "XLM", "T5", "mBART"])
def test_an_s2dm_reads_input_embeddings_of_any_width(kind, tmp_path):
    "And its decoder may know the subwords of the data alone."
    settings = pretraining(save_kind(kind, tmp_path), decoder_vocabulary="data",
                           overrides=f"{SIZES},e_level=embeddings")
    done = pretrain(settings)
    table = done.vectors.encoder.model.get_input_embeddings()
    assert done.vectors.model.config.embedding_width == table.embedding_dim
    assert torch.tensor(done.fit.history.to_numpy()).isfinite().all()


# What is refused

def perceiver(folder):
    T.PerceiverConfig().save_pretrained(folder)
    (folder / "model.safetensors").touch()


def without_words(folder):
    save_kind("BERT", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"): (folder / name).unlink()


def with_too_many_words(folder):
    tokenizer = wordpiece()
    T.BertModel(config(T.BertConfig, tokenizer, vocab_size=50)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def without_a_layer(folder):
    save_kind("BERT", folder)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | dict(num_hidden_layers=3)))


REFUSED = {
    "CANINE": save_canine, "Perceiver": perceiver, "no tokenizer in the folder": without_words,
    "a tokenizer with more ids than the table has rows": with_too_many_words,
    "weights of fewer layers than the configuration says": without_a_layer}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory, questions):
    "what -> the error of S2DM and of reader, which are the same, without the folder's name."
    said = {}

    def get(what):
        if what not in said: said[what] = refusal(what, tmp_path_factory.mktemp("bad"), questions)
        return said[what]
    return get


def refusal(what, folder, questions):
    REFUSED[what](folder)
    reading = finetuning(folder, questions, variant="baseline")
    errors = []
    for run, settings in ((pretrain, pretraining(folder)), (finetune, reading)):
        with pytest.raises((ParameterError, DataError)) as error: run(settings)
        errors.append((type(error.value).__name__, str(error.value)))
        assert not settings.folder("pretrain").exists()
        assert not settings.folder("finetune").exists()
    assert errors[0] == errors[1]
    name, message = errors[0]
    return name, re.sub(rf"'?{re.escape(str(folder))}'?", "…", message)


@pytest.mark.parametrize("what, name, says", [
    ("CANINE", "ParameterError", "a canine model, which reads characters"),
    ("Perceiver", "ParameterError", "a perceiver model, which reads characters"),
    ("no tokenizer in the folder", "DataError", "lacks the tokenizer's vocab.txt"),
    ("a tokenizer with more ids than the table has rows", "DataError", "table has 50 rows"),
    ("weights of fewer layers than the configuration says", "DataError", "lacks 16 weights"),
])
def test_a_refusal_says_why(what, name, says, refusals):
    error, message = refusals(what)
    assert error == name and says in message


# The table

def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def in_short(value): return "no" if str(value).startswith("freeze_") else value


def page(text, rows, errors):
    "The page with its two tables as they were found."
    kinds = table(list(rows[0]), [[in_short(v) for v in row.values()] for row in rows])
    refused = [[row["kind"], "freeze_layers", "ParameterError", row["freeze_layers"]]
               for row in rows if in_short(row["freeze_layers"]) == "no"]
    refused += [[what, "all", *error] for what, error in errors.items()]
    messages = table(["kind", "what is refused", "error", "message"], refused)
    for name, made in (("kinds", kinds), ("refused", messages)):
        begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        text = re.sub(f"{begin}.*?{end}", lambda _, s=begin + made + end: s, text, flags=re.S)
    return text


def test_the_table_in_the_docs_is_what_was_found(found, refusals):
    text = PAGE.read_text(encoding="utf-8")
    new = page(text, [found(kind) for kind in KINDS], {what: refusals(what) for what in REFUSED})
    if os.environ.get("S2DM_WRITE_DOCS"): PAGE.write_text(new, encoding="utf-8")
    else: assert new == text, "run `S2DM_WRITE_DOCS=1 python -m pytest tests/test_kinds_trained.py`"
