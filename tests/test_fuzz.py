"""Damaged files, folders, records and servers: each mutation is refused by an error of this library
that names what was read, or what was read is what the file says. Seeded; the counts are printed.
And the small files of readers: how much is lost, and what is refused.
"""
import copy
import hashlib
import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from fake_runs import fake_runs
from hypothesis import given
from hypothesis import strategies as st

import s2dm.encoder
import s2dm.reader
from s2dm.core import DataError, ParameterError, data_dir
from s2dm.packing import BLOCK, from_bits, pack, restored, rounded, to_bits, unpack
from s2dm.parsers import plain_answer, read_answer
from s2dm.reader import S2DMReader
from s2dm.reading import read_qamr, read_squad
from s2dm.results import collect
from s2dm.similarity import read_sts2017, read_zh_sts
from s2dm.sources import Source, fetch
from s2dm.toy import save_toy_encoder, save_toy_questions, save_toy_s2dm, toy_reader
from s2dm.treebanks import read_conllu
from s2dm.vectors import TextVectors

VALUES = (None, True, False, -1, 0, 1, 2, 3, 10**6, 10**30, .5, 1e308, "", "x", "\ud800", "../x",
          [], [1], ["x"], {}, {"x": 1})


def changed_bytes(draw, raw):
    "A file with one damage somewhere."
    a = draw.randrange(len(raw) + 1)
    b = min(len(raw), a + draw.choice((1, 1, 2, 8, 64, 1000)))
    return draw.choice((
        raw[:a] + bytes(x ^ (1 << draw.randrange(8)) for x in raw[a:b]) + raw[b:],
        raw[:a], raw[:a] + raw[b:], raw[:b] + raw[a:], raw[:a] + bytes(b - a) + raw[b:],
        raw[:a] + draw.randbytes(b - a) + raw[b:], raw + raw[a:b], b""))


def places(value): # containers and keys of everything in JSON
    keys = value if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)): yield from places(value[key])


def changed_json(draw, raw):
    "A JSON file whose values have other types or sizes, or are gone."
    values = json.loads(raw)
    for _ in range(draw.choice((1, 1, 2))):
        at = list(places(values))
        if not at: break
        holder, key = draw.choice(at)
        if draw.random() < .2: del holder[key]
        elif type(holder[key]) is int and draw.random() < .5: holder[key] += draw.choice((1, -1))
        else: holder[key] = copy.deepcopy(draw.choice(VALUES))
    return json.dumps(values).encode()


def change(draw, file, raw):
    "Another content of a file; None: it is gone."
    if draw.random() < .02: return None
    if draw.random() < .02: return draw.choice((b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}"))
    if file.suffix == ".json" and draw.random() < .7: return changed_json(draw, raw)
    return changed_bytes(draw, raw)


def weights_of_header(draw, file, raw): # of safetensors: its header, or its length
    if draw.random() < .3: return raw[:draw.randrange(len(raw))]
    end = 8 + int.from_bytes(raw[:8], "little")
    return changed_bytes(draw, raw[:end]) + raw[end:]


class Counts(Counter):
    "What came of mutations: refused, the same as before, as the file says; and faults."
    def __init__(self):
        super().__init__()
        self.faults = []

    def judge(self, act, what, named):
        "act() -> None, or why what was read is neither the same nor what the file says."
        try: fault = act()
        except (DataError, ParameterError) as error:
            self["refused"] += 1
            names = [named] if isinstance(named, str) else named
            if any(name in str(error) for name in names): return
            fault = f"not named: {error}"
        except BaseException as error: # a panic of a library in Rust is no Exception
            if isinstance(error, KeyboardInterrupt): raise
            self["raw"] += 1
            fault = f"raw: {type(error).__name__}: {error}"
        else: self["accepted"] += 1
        if fault: self.faults.append(f"{what}: {fault}")

    def say(self, what, start):
        print(f"\n{what}: {self.total()} mutations, {dict(self)}, {len(self.faults)} faults, "
              f"{time.monotonic() - start:.0f} s")
        assert not self.faults, "\n".join(f[:300] for f in self.faults[:20])


def mutate(draw, folder, file, how=change): # write a mutation; returns what undoes it
    raw = file.read_bytes()
    new = how(draw, file, raw)
    while new == raw: new = how(draw, file, raw)
    file.unlink()
    if new is not None: file.write_bytes(new)
    return lambda: file.write_bytes(raw)


# a reader's folder, and that of an S2DM


@pytest.fixture
def quick(monkeypatch):
    "An encoder whose files did not change is opened once: that takes most of the time."
    real = s2dm.encoder._open
    opened = {}

    def quick_open(folder, dtype):
        sums = [(p.name, hashlib.sha256(p.read_bytes()).digest()) for p in sorted(folder.iterdir())]
        key = str((sums, dtype))
        if key not in opened: opened[key] = real(folder, dtype)
        return copy.deepcopy(opened[key])

    monkeypatch.setattr(s2dm.encoder, "_open", quick_open)
    monkeypatch.setattr(
        s2dm.encoder, "hub_files", lambda *_: (_ for _ in ()).throw(OSError("no network")))


def _as_json(value): return json.loads(json.dumps(value))


def _says(settings, config): # is the configuration the default, changed by what a file says?
    kept = _as_json(config.as_dict())
    return all(kept[k] == v or str(kept[k]) == str(v) or v is None for k, v in settings.items())


def _judge_reader(folder, weights, answers, strict):
    reader = S2DMReader.from_pretrained(folder, "cpu")
    about = json.loads((folder / "reader.json").read_text())
    if not _says(about["reader"], reader.config): return "reader.json says another configuration"
    if about["s2dm"] and not _says(about["s2dm"], reader.s2dm_config): return "another S2DM"
    if not strict: return None
    state = reader.state_dict()
    other = [name for name in weights if not torch.equal(state[name], weights[name])]
    if other: return f"other weights: {other[0]}"
    if reader.config == toy_reader().config and reader.answer("Wo?", "Am See.") != answers:
        return "other answers"
    return None


def as_older(file, name): # returns a function of: with checksums, or as an older version left it?
    "Without checksums a damage goes further; with them some that nothing else notices is found."
    whole = json.loads(file.read_text())
    texts = [json.dumps({k: v for k, v in whole.items() if k != name}), json.dumps(whole)]
    assert texts[0] != texts[1]
    return lambda with_sums: file.write_text(texts[with_sums])


def test_a_thousand_mutations_of_checkpoint_folders(tmp_path, quick):
    start = time.monotonic()
    reader = toy_reader()
    reader.facts = dict(system="s2dm_sp", em=52.5)
    folder = reader.save_pretrained(tmp_path / "reader")
    weights, answers = reader.state_dict(), reader.answer("Wo?", "Am See.")
    encoder = s2dm.encoder.load_encoder(save_toy_encoder(tmp_path / "encoder"), "cpu")
    save_toy_s2dm(tmp_path / "model", encoder)
    vectors = TextVectors.from_pretrained(tmp_path / "model", device="cpu")
    before = vectors(["ein see"])
    counts = Counts()

    def judge_vectors():
        again = TextVectors.from_pretrained(tmp_path / "model", device="cpu")
        settings = json.loads((tmp_path / "model/config.json").read_text())
        for name in ("model_type", "s2dm_version"): del settings[name]
        settings.pop("weights_sha256", None)
        if not _says(settings, again.model.config): return "config.json says otherwise"
        same = all(torch.equal(before[kind], x) for kind, x in again(["ein see"]).items())
        return None if same or again.model.config != vectors.model.config else "other vectors"

    jobs = [("reader.json", 350), ("reader.safetensors", 200), ("encoder/config.json", 100),
            ("encoder/tokenizer.json", 50), ("encoder/tokenizer_config.json", 50),
            ("encoder/model.safetensors", 50)]
    put = as_older(folder / "reader.json", "files")
    for name, n in jobs:
        how = weights_of_header if name.endswith(".safetensors") else change
        draw = random.Random(name)
        for i in range(n):
            put(i % 2)
            undo = mutate(draw, folder, folder / name, how)
            strict = not name.startswith("encoder/")
            counts.judge(lambda s=strict: _judge_reader(folder, weights, answers, s),
                         f"{name} {i}", str(folder))
            undo()
    put = as_older(tmp_path / "model/config.json", "weights_sha256")
    for name, n in (("config.json", 80), ("encoder.json", 60), ("model.safetensors", 60)):
        how = weights_of_header if name.endswith(".safetensors") else change
        draw = random.Random(name)
        for i in range(n):
            put(i % 2)
            undo = mutate(draw, tmp_path / "model", tmp_path / "model" / name, how)
            counts.judge(judge_vectors, f"S2DM's {name} {i}", str(tmp_path / "model"))
            undo()
    counts.say("checkpoint folders", start)
    assert counts.total() == 1000


# files of text, and what is kept of training


TREES = """# sent_id = n01000001
# text = Sie geht zum See.
1\tSie\ter\tPRON\t_\t_\t2\tnsubj\t_\t_
2\tgeht\tgehen\tVERB\t_\t_\t0\troot\t_\t_
3-4\tzum\t_\t_\t_\t_\t_\t_\t_\t_
3\tzu\tzu\tADP\t_\t_\t5\tcase\t_\t_
4\tdem\tder\tDET\t_\t_\t5\tdet\t_\t_
5\tSee\tSee\tNOUN\t_\t_\t2\tobl\t_\t_
6\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_

"""


def _check_squad(file):
    for row in read_squad(file):
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"]):
            if row["context"][start:start + len(text)] != text: return "an answer elsewhere"
    return None


def _check_trees(file):
    found = [form for row in read_conllu(file) for form in row["forms"]]
    lines = [line.split("\t") for line in file.read_bytes().decode().split("\n")]
    forms = [line[1] for line in lines if len(line) == 10 and line[0].isdecimal()]
    return None if found == forms else f"words {found}"


def _check_qamr(file):
    for row in read_qamr(file, file.with_name("sentences.tsv")):
        if not all(text in row["context"] for text in row["answers"]["text"]): return "elsewhere"
    return None


def _check_answer(file): # of CoreNLP
    try: answer = json.loads(file.read_bytes())
    except (ValueError, RecursionError): return None # `CoreNLP` has a test of its own
    parse = read_answer("Anna slept.", plain_answer("Anna slept.", answer))
    spans = [*parse.words, *((a, b) for a, b, _ in parse.phrases)]
    return None if all(0 <= a < b <= 11 for a, b in spans) else f"spans {spans}"


def _files(folder): # file -> its check
    save_toy_questions(folder / "squad.json", 4)
    (folder / "trees.conllu").write_text(TREES, encoding="utf-8")
    (folder / "sentences.tsv").write_text("S1\tThe pale 24 tirthankara sat .\n")
    (folder / "qamr.tsv").write_text("S1\t2 3\t76\t0\t3\tWho sat ?\t2 3\t261:3\t60:0 3\n")
    scored = "text_a\ttext_b\tscore\n人\t山\t0.5\n水\t火\t1\n"
    (folder / "zh.csv").write_text(scored, encoding="utf-8")
    (folder / "input.txt").write_text("a b\tc d\ne\tf\n")
    (folder / "gs.txt").write_text("4.5\n0\n")
    words = (("Anna", "NNP", 0, 4), ("slept", "VBD", 5, 10), (".", ".", 10, 11))
    tokens = [dict(word=w, originalText=w, pos=p, characterOffsetBegin=a, characterOffsetEnd=b)
              for w, p, a, b in words]
    tree = "(ROOT\n (S (NP (NNP Anna))\n (VP (VBD slept)) (. .)))"
    answer = dict(sentences=[dict(parse=tree, tokens=tokens)])
    (folder / "corenlp.json").write_text(json.dumps(answer))
    def scores(table, high): return None if all(0 <= x <= high for x in table["score"]) else "score"
    return {
        "squad.json": _check_squad, "trees.conllu": _check_trees, "qamr.tsv": _check_qamr,
        "zh.csv": lambda file: scores(read_zh_sts(file), 1),
        "gs.txt": lambda file: scores(
            read_sts2017(file.with_name("input.txt"), file, "en", "en"), 5),
        "corenlp.json": _check_answer}


def test_mutations_of_text_files(tmp_path):
    start = time.monotonic()
    draw = random.Random(1)
    counts = Counts()
    for name, check in _files(tmp_path).items():
        for i in range(150):
            undo = mutate(draw, tmp_path, tmp_path / name)
            if (tmp_path / name).exists() or name != "corenlp.json":
                counts.judge(lambda c=check, n=name: c(tmp_path / n), f"{name} {i}",
                             [name, "CoreNLP", "tree ", "input.txt"])
            undo()
    counts.say("files of text", start)


def test_mutations_of_a_training_checkpoint(tmp_path):
    from test_fit import Net, same, train

    start = time.monotonic()
    draw = random.Random(2)
    whole, _ = train(tmp_path, epochs=1)
    file = tmp_path / "fit.safetensors"

    def judge():
        net, _ = train(tmp_path, net=Net(), epochs=1)
        return None if same(net, whole) else "other weights"

    def how(draw, _, raw):
        "A header whose JSON is another, or that is cut or damaged."
        if draw.random() < .5: return weights_of_header(draw, _, raw)
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        about = changed_json(draw, header["__metadata__"]["about"])
        header["__metadata__"]["about"] = about.decode()
        packed = json.dumps(header).encode()
        packed += b" " * (-len(packed) % 8)
        return len(packed).to_bytes(8, "little") + packed + raw[end:]

    counts = Counts()
    for i in range(100):
        undo = mutate(draw, tmp_path, file, how)
        counts.judge(judge, f"fit.safetensors {i}", str(tmp_path))
        undo()
    counts.say("a training checkpoint", start)


# records


def test_mutations_of_records(tmp_path):
    start = time.monotonic()
    draw = random.Random(3)
    root = fake_runs(tmp_path, systems=("s2dm_sp",), seeds=1, languages=("svo", "sov"))
    files = sorted(root.rglob("*.json"))
    counts = Counts()

    def judge(file):
        results = collect(("small",), root)
        if not file.exists(): return None
        said = json.loads(file.read_text())
        if file.match("evaluate/*/*/*/metrics.json"):
            ours = sorted(x for x in results.scores["em"] if x == x)
            theirs = [r["em"] for f in root.glob("evaluate/*/*/*/metrics.json")
                      for r in json.loads(f.read_text())["results"] if r["em"] is not None]
            if ours != sorted(theirs): return "other scores"
        return None if isinstance(said, dict) else f"a {type(said).__name__}"

    for i in range(200):
        file = draw.choice(files)
        undo = mutate(draw, tmp_path, file)
        counts.judge(lambda f=file: judge(f), f"{file.relative_to(root)} {i}", str(file.parent))
        undo()
    counts.say("records", start)


# a server that lies


class Liar(BaseHTTPRequestHandler):
    "Sends `server.lie` in the place of a file, as it is."

    def do_GET(self):
        self.close_connection = True
        try: self.wfile.write(self.server.lie)
        except OSError: pass # it hung up

    def log_message(self, *args): pass


def lies(draw, body):
    "An answer whose head and body do not go together, or that is no http."
    part = changed_bytes(draw, body)
    status = draw.choice(("200 OK", "200 OK", "206 Partial Content", "204 No Content", "404 No",
                          "500 Broken", "302 Found", "200", "abc", "99999 x"))
    length = draw.choice((len(body), len(part), len(part) // 2, len(part) + 5, -1, 0, None))
    head = [f"HTTP/1.1 {status}"]
    if length is not None: head.append(f"Content-Length: {length}")
    head += draw.sample(["Content-Range: bytes 0-1/2", "Content-Range: x", "Location: /",
                         "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Location: ftp://x",
                         "Content-Type: \xff", ": no name", "x" * 300], draw.choice((0, 0, 1, 2)))
    whole = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + draw.choice((body, part))
    return changed_bytes(draw, whole) if draw.random() < .2 else whole


def test_a_server_that_lies(tmp_path, monkeypatch):
    start = time.monotonic()
    draw = random.Random(4)
    body = draw.randbytes(3000)
    source = Source("demo/a.bin", "demo", "", bytes=len(body),
                    sha256=hashlib.sha256(body).hexdigest(), licence="CC0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/a.bin"
    registry = {source.path: Source(**source.__dict__ | dict(url=url))}
    monkeypatch.setattr(time, "sleep", lambda _: None) # between attempts
    counts = Counts()
    file = data_dir() / "raw/demo/a.bin"

    def judge():
        return None if fetch(source.path, registry).read_bytes() == body else "other bytes"

    for i in range(150):
        server.lie = lies(draw, body)
        counts.judge(judge, f"lie {i} {server.lie[:120]!r}", ["demo/a.bin", url])
        if file.exists() and file.read_bytes() != body: counts.faults.append(f"lie {i} is kept")
        for rest in file.parent.glob("a.bin*"): rest.unlink()
    server.shutdown()
    server.server_close()
    counts.say("a server that lies", start)


# --- small files

@given(
    numbers=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=100),
    bits=st.integers(2, 8))
def test_every_number_is_off_by_half_a_scale_at_most(numbers, bits):
    x = torch.tensor(numbers)
    some = rounded(x, bits)
    scale = some.scales.float().repeat_interleave(BLOCK)[:len(x)]
    # numbers too small for half precision become zero
    off = (restored(some, x.shape) - x).abs()
    assert (off <= torch.maximum(scale / 2 * 1.001, torch.tensor(6e-5))).all()
    assert some.integers.abs().max() <= 2 ** (bits - 1) - 1


def small_weights(seed, scale=1.):
    draw = torch.Generator().manual_seed(seed)
    return {f"layer{i}.weight": scale * torch.randn(40, 33, generator=draw) for i in range(3)}


def test_differences_lose_a_few_percent_of_their_norm_and_shrink():
    before, change = small_weights(0), small_weights(1, .02)
    learned = {name: before[name] + change[name] for name in before}
    sizes = {}
    for bits, most in ((4, .12), (6, .03), (8, .007)):
        tensors = pack(learned, before, bits)
        sizes[bits] = sum(tensor.nbytes for tensor in tensors.values())
        back = dict(unpack(tensors, before))
        for name, weight in learned.items():
            assert (back[name] - weight).norm() < most * change[name].norm()
    blocks = 3 * -(-40 * 33 // BLOCK)
    assert sizes == {bits: blocks * (4 * bits + 2) for bits in sizes} # bits, and a scale


@given(data=st.data(), bits=st.integers(2, 8), blocks=st.integers(1, 3))
def test_bits_come_back_as_they_were(data, bits, blocks):
    some = st.integers(-2 ** (bits - 1), 2 ** (bits - 1) - 1)
    numbers = data.draw(st.lists(some, min_size=blocks * BLOCK, max_size=blocks * BLOCK))
    integers = torch.tensor(numbers, dtype=torch.int8).view(blocks, BLOCK)
    packed = to_bits(integers, bits)
    assert packed.shape == (blocks, 4 * bits)
    assert torch.equal(from_bits(packed), integers)


@pytest.mark.parametrize("change, says", [
    ({"layer0.weight:scales": None}, "is broken: layer0.weight"),
    ({"layer0.weight:bits": torch.zeros(42, 24)}, "is broken: layer0.weight"), # of another kind
    ({"layer0.weight:bits": torch.zeros(42, 36).byte()}, "is broken: layer0.weight"), # 9 bits
    ({"layer0.weight:bits": torch.zeros(42, 25).byte()}, "is broken: layer0.weight"),
    ({"layer0.weight:bits": torch.zeros(4, 24).byte()}, "is broken: layer0.weight"),
    ({"layer0.weight:bits": torch.zeros(42).byte()}, "is broken: layer0.weight"),
    ({"layer0.weight:scales": torch.tensor(1.).half()}, "is broken: layer0.weight"),
    ({"layer0.weight:scales": torch.full((42,), torch.inf).half()}, "is broken: layer0.weight"),
    ({"foreign:scales": torch.ones(1).half()}, "foreign is unknown")])
def test_what_does_not_fit_is_named(change, says):
    before = small_weights(0)
    tensors = pack(small_weights(2), before) | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(DataError, match=f"mine.*{says}"): dict(unpack(tensors, before, "mine"))


def test_numbers_that_no_half_precision_holds_are_refused():
    with pytest.raises(ParameterError, match="not finite"): rounded(torch.tensor([1e9]))
