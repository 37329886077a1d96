"""New vocabularies: merges known by hand, the same in every run, and what training refuses."""
import pytest

from minitransfer.text import Tokenizer


def test_merges_are_those_a_hand_derives():
    """"aa" is in 7 + 3 places, then "aab" in 7, then "ba" in 5: the order of their numbers."""
    tok = Tokenizer.train(["aab"] * 7 + ["aac"] * 3 + ["ba"] * 5, "byte_bpe", 260)
    assert [t for t, i in sorted(tok.vocab.items(), key=lambda x: x[1]) if i >= 257] == ["aa", "aab", "ba"]
    assert tok.tokens(tok.encode("aabaac ba")) == ["aab", "aa", "c", "Ġ", "ba"]


def test_rare_characters_are_left_out_and_bytes_never(tmp_path):
    texts = ["plain words only and nothing else " * 3000, "one 限 here"]
    word, byte = (Tokenizer.train(texts, kind, 300) for kind in ("wordpiece", "byte_bpe"))
    assert "限" not in word.vocab and {"p", "##w", "l"} <= set(word.vocab) and word.encode("限", specials=False) == [word.unk_id]
    assert byte.decode(byte.encode("one 限")) == "one 限"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "byte_bpe", "character"])
def test_the_same_texts_give_the_same_vocabulary(kind):
    texts = ["".join(chr(97 + (i * i * k) % 23) for i in range(9)) + " é" for k in range(60)]      # many ties
    assert len({Tokenizer.train(one, kind, 290).fingerprint for one in (texts, iter(texts), tuple(texts), iter(texts))}) == 1


def test_training_lowercases_when_told():
    texts = ["Some Text with Words, words and more words."] * 3
    one, cased = Tokenizer.train(texts, "wordpiece", 67), Tokenizer.train(texts, "wordpiece", 67, lowercase=False)
    assert one.fingerprint != cased.fingerprint and cased.encode("WORDS") != cased.encode("words")
    assert one.encode("WORDS") == one.encode("words")
    lower = Tokenizer.train(texts, "byte_bpe", 270, lowercase=True)
    assert lower.encode("WORDS") == lower.encode("words")
    assert Tokenizer.train(texts, "wordpiece", 43).vocab_size == 43


def test_a_long_text_is_trained_on_whole_and_in_any_cut():
    """The trainer is fed in items; the vocabulary must not depend on where they end."""
    words = [f"w{i % 97}x{i % 31}" for i in range(20_000)]
    assert Tokenizer.train([" ".join(words)], "wordpiece", 301).fingerprint == Tokenizer.train(words, "wordpiece", 301).fingerprint


@pytest.mark.parametrize("arguments, said", [
    ((["a"], "sentencepiece"), "kind='sentencepiece'; it is one of 'wordpiece', 'bpe', 'byte_bpe', 'unigram', 'character'"),
    (("one text",), r"texts is one string; Tokenizer.train needs many texts: pass a list, or read_texts\(path\)"),
    ((["a"], "byte_bpe", 256), "vocab_size=256; kind='byte_bpe' needs a place for each of 256 bytes and 1 special token: choose a larger one"),
    ((["some text"], "wordpiece", 13),
     "vocab_size=13; the special tokens and the single characters of these texts need 17 places: choose a larger one"),
    ((["some text"], "bpe", 5), "vocab_size leaves 0 places beside the special tokens; single characters need some: choose a larger one"),
    (([],), "texts holds no character; a tokenizer is trained on text: check the corpus"),
    ((["", ""],), "texts holds no character"),
    ((iter([None]),), "texts holds a NoneType; each item is one str"),
])
def test_mistakes_of_training(arguments, said):
    with pytest.raises(ValueError, match=said):
        Tokenizer.train(*arguments)
