"Kinds of encoders and tokenizers, each as a tiny random model: what loads, and what is refused."
import json
import shutil
import unicodedata
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import transformers as T
from test_features import TEXTS, bytelevel, sentencepiece, wordpiece, xlm
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

import s2dm.encoder
from s2dm.core import DataError, ParameterError
from s2dm.encoder import FeatureCache, load_encoder, offset_recovery
from s2dm.layers import dropout_of, set_dropout, split_layers

SENTENCES = [["Zürich", "liegt", "am", "See"], ["Wo"], ["中国人民", "银行"], ["हिन्दी", "में"]]
SMALL = dict(num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def with_specials(tokenizer, before="", after=" </s>"):
    "The same tokenizer, with the special tokens that a family puts around a text."
    inner = tokenizer.backend_tokenizer
    inner.post_processor = TemplateProcessing(
        single=f"{before} $A{after}".strip(), pair=f"{before} $A{after} $B{after}".strip(),
        special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in (before + after).split()])
    return tokenizer


def unigram(*specials, before="", after=" </s>"):
    "SentencePiece's pieces, as T5, XLNet and mBART have them."
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    named = ["<pad>", "</s>", "<unk>", *specials]
    inner.train_from_iterator(TEXTS * 3, trainers.UnigramTrainer(
        vocab_size=200, special_tokens=named, unk_token="<unk>", show_progress=False))
    fast = T.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>",
                                     eos_token="</s>")
    return with_specials(fast, before, after)


def gemma():
    "Gemma's kind: BPE with byte fallback, spaces are a letter of their own and no word has a mark."
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    parts = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    inner.decoder = decoders.Sequence(list(parts))
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    inner.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", *fallback],
        show_progress=False))
    fast = T.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>",
                                     bos_token="<bos>", eos_token="<eos>")
    return with_specials(fast, "<bos>", "")


def config(cls, tokenizer, **more):
    own = dict(vocab_size=len(tokenizer), hidden_size=16, pad_token_id=tokenizer.pad_token_id)
    return cls(**own | SMALL | more)


def t5(cls, tokenizer):
    return cls(vocab_size=len(tokenizer) + 9, d_model=16, d_kv=8, d_ff=32, num_layers=2,
               num_heads=2, decoder_start_token_id=0)


def mbart(cls, tokenizer):
    return cls(vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2,
               encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
               decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=0)


def model(name, config_of=config, **more):
    "A function from a tokenizer to a model of this name."
    kind, settings = getattr(T, f"{name}Model"), getattr(T, f"{name}Config")
    return lambda tokenizer: kind(config_of(settings, tokenizer, **more))


def xlnet(cls, tokenizer):
    return cls(vocab_size=len(tokenizer), d_model=16, n_layer=2, n_head=2, d_inner=32)


def xlm_config(cls, tokenizer):
    return cls(vocab_size=len(tokenizer), emb_dim=16, n_layers=2, n_heads=2,
               max_position_embeddings=64)


def xlm_pieces():
    with TemporaryDirectory() as folder: return xlm(Path(folder))


def xlnet_pieces(): return unigram("<sep>", "<cls>", after=" <sep> <cls>")
def mbart_pieces(): return unigram("en_XX", after=" </s> en_XX")


# name -> tokenizer, model, class that is loaded
KINDS = {
    "BERT": (wordpiece, model("Bert"), "BertModel"),
    "XLM": (xlm_pieces, model("XLM", xlm_config), "XLMModel"),
    "XLM-R": (sentencepiece, model("XLMRoberta"), "XLMRobertaModel"),
    "ELECTRA": (wordpiece, model("Electra", embedding_size=8), "ElectraModel"),
    "ALBERT": (sentencepiece, model("Albert", embedding_size=8), "AlbertModel"),
    "RemBERT": (sentencepiece, model("RemBert", input_embedding_size=8, output_embedding_size=8),
                "RemBertModel"),
    "MobileBERT": (wordpiece, model("MobileBert", embedding_size=8, intra_bottleneck_size=8,
                                    true_hidden_size=8), "MobileBertModel"),
    "ConvBERT": (wordpiece, model("ConvBert", embedding_size=8, conv_kernel_size=3),
                 "ConvBertModel"),
    "XLNet": (xlnet_pieces, model("XLNet", xlnet), "XLNetModel"),
    "T5": (unigram, model("T5", t5), "T5EncoderModel"),
    "mT5": (unigram, model("MT5", t5), "MT5EncoderModel"),
    "mBART": (mbart_pieces, model("MBart", mbart), "MBartEncoder"),
    "DeBERTa-v2": (sentencepiece, model("DebertaV2", relative_attention=True, position_buckets=8,
                                        pos_att_type=["p2c", "c2p"]), "DebertaV2Model"),
    "DeBERTa-v2 with a convolution": (sentencepiece, model("DebertaV2", conv_kernel_size=3),
                                      "DebertaV2Model"),
    "byte-level BPE": (bytelevel, model("Roberta"), "RobertaModel"),
    "Gemma's tokenizer": (gemma, model("Bert"), "BertModel"),
}


def save_kind(kind, folder):
    "An encoder of this kind with its tokenizer, in a folder."
    make_tokenizer, make_model, _ = KINDS[kind]
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "kind -> a folder with that encoder; made when it is first asked for."
    folders = {}

    def get(kind):
        if kind not in folders: folders[kind] = save_kind(kind, tmp_path_factory.mktemp("kind"))
        return folders[kind]
    return get


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_encoder_loads_and_gives_features(kind, saved, tmp_path):
    "The states in the cache are those of the model itself, with as many numbers as they have."
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        encoder = load_encoder(str(saved(kind)), "cpu")
    assert type(encoder.model).__name__ == encoder.record["kind"] == KINDS[kind][2]
    assert encoder.split.limit > 16
    states = encoder(encoder.split(SENTENCES))
    assert states.shape[1] == encoder.width == 16
    cache = FeatureCache(encoder, "float32", folder=tmp_path)
    kept = torch.cat([cache[i].h for i in cache.encode(SENTENCES, progress=False)])
    torch.testing.assert_close(kept, states, atol=1e-5, rtol=1e-4)
    one = encoder.split(SENTENCES[:1])[0]
    ids = [*encoder.split.prefix, *one.ids.tolist(), *encoder.split.suffix]
    alone = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    start = len(encoder.split.prefix)
    alone = alone[start:start + len(one.ids)]
    torch.testing.assert_close(alone, states[:len(one.ids)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["T5", "mT5", "mBART"])
def test_the_encoder_of_an_encoder_decoder_is_loaded_alone(kind, saved, tmp_path):
    "Its states are those that the decoder would see; it can be saved and loaded again."
    encoder = load_encoder(str(saved(kind)), "cpu")
    whole = T.AutoModel.from_pretrained(saved(kind)).eval()
    ids = torch.tensor([[*range(5, 15), 1]])
    with torch.no_grad():
        seen = whole(input_ids=ids, decoder_input_ids=ids).encoder_last_hidden_state
        torch.testing.assert_close(encoder.model(input_ids=ids).last_hidden_state, seen)
    assert not any("decoder" in name for name, _ in encoder.model.named_parameters())
    encoder.model.save_pretrained(tmp_path)
    encoder.split.tokenizer.save_pretrained(tmp_path)
    again = load_encoder(str(tmp_path), "cpu")
    assert type(again.model) is type(encoder.model)
    weights = again.model.state_dict()
    for name, weight in encoder.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def save_canine(folder):
    settings = T.CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                              intermediate_size=32, num_hash_buckets=8, max_position_embeddings=64,
                              local_transformer_stride=8)
    T.CanineModel(settings).save_pretrained(folder)
    T.CanineTokenizer().save_pretrained(folder)


def test_a_model_of_characters_is_refused(tmp_path):
    save_canine(tmp_path)
    says = "a canine model, which reads characters; expected an encoder with a table of subwords"
    with pytest.raises(ParameterError, match=says): load_encoder(str(tmp_path), "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_a_kind_is_known_and_can_be_turned_off(kind, saved):
    "XLM and mBART keep it in attributes of their layers, others in modules."
    model = load_encoder(str(saved(kind)), "cpu").model
    ids = torch.arange(5, 15)[None]
    mask = torch.ones_like(ids)
    def states(): return model(input_ids=ids, attention_mask=mask).last_hidden_state
    still = states()
    model.train()
    assert (dropout_of(model) > 0) == (not torch.equal(states(), states()))
    set_dropout(model, 0.)
    assert dropout_of(model) == 0
    torch.testing.assert_close(states(), still, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_halves_of_an_encoder_say_what_the_whole_says(kind, saved):
    "Padding included; kinds for which they would not are refused."
    model = load_encoder(str(saved(kind)), "cpu").model
    ids = torch.arange(5, 15).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    names = {name for name, _ in model.named_modules()}
    possible = {"embeddings", "encoder.layer"} <= names and "convolution" not in kind
    if not possible:
        with pytest.raises(ParameterError, match=r"freeze_layers is not possible with \w+: "):
            split_layers(model, 1)
        return
    lower, upper = split_layers(model, 1)
    with torch.no_grad():
        states = lower(input_ids=ids, attention_mask=mask).last_hidden_state
        again = upper(inputs_embeds=states, attention_mask=mask).last_hidden_state
        whole = model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(again[mask > 0], whole[mask > 0])


# Tokenizers

@pytest.mark.parametrize("kind, files", [("ELECTRA", "vocab.txt"),
                                         ("byte-level BPE", "vocab.json and merges.txt")])
def test_a_tokenizer_without_files_is_an_error(kind, files, saved, tmp_path):
    folder = shutil.copytree(saved(kind), tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"): (folder / name).unlink()
    says = rf"lacks the tokenizer's {files} \(or tokenizer.json\): without them every word"
    with pytest.raises(DataError, match=says): load_encoder(str(folder), "cpu")


def test_a_slow_tokenizer_without_one_of_its_files_is_an_error(tmp_path):
    (tmp_path / "files").mkdir()
    tokenizer = xlm(tmp_path / "files")
    folder = tmp_path / "xlm"
    model = T.XLMModel(T.XLMConfig(vocab_size=len(tokenizer), emb_dim=16, n_layers=1, n_heads=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    load_encoder(str(folder), "cpu")
    (folder / "merges.txt").unlink()
    with pytest.raises(DataError, match="merges|cannot be read"): load_encoder(str(folder), "cpu")


def test_a_tokenizer_with_more_ids_than_the_table_has_rows_is_an_error(tmp_path):
    tokenizer = wordpiece()
    T.BertModel(config(T.BertConfig, tokenizer, vocab_size=50)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    says = f"the tokenizer has ids up to {len(tokenizer) - 1}, the embedding table has 50 rows"
    with pytest.raises(DataError, match=says): load_encoder(str(tmp_path), "cpu")


def test_no_code_of_a_folder_is_run(saved, tmp_path):
    folder = shutil.copytree(saved("ELECTRA"), tmp_path / "copy")
    about = json.loads((folder / "config.json").read_text())
    own = dict(AutoConfig="code.Config", AutoModel="code.Model")
    about |= dict(model_type="mine", auto_map=own)
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="cannot be read"): load_encoder(str(folder), "cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("make", [wordpiece, sentencepiece, bytelevel, unigram, gemma])
def test_offsets_of_the_usual_kinds_are_whole(make): assert offset_recovery(make()) > .99


def test_lost_letters_are_said_when_an_encoder_is_loaded(tmp_path):
    "A tokenizer that drops the first letter of each word."
    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    first_letters = pre_tokenizers.Split(Regex(r"^\w(?=\w)"), "removed")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), first_letters])
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]",
                                          pad_token="[PAD]")
    T.BertModel(config(T.BertConfig, tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    share = offset_recovery(tokenizer)
    assert .7 < share < .95
    says = f"give back {share:.1%} of the characters of a text in ten scripts"
    with pytest.warns(UserWarning, match=says): load_encoder(str(tmp_path), "cpu")


def test_the_sample_has_ten_scripts():
    scripts = {unicodedata.name(text[0]).split()[0] for text in s2dm.encoder._SAMPLE}
    assert len(scripts) == len(s2dm.encoder._SAMPLE) == 10, scripts
    assert np.mean([len(text) for text in s2dm.encoder._SAMPLE]) > 30
