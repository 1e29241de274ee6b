"""What the zoo and the command line refuse."""

import numpy as np
import torch

from bad_inputs.case import Case
from termwise import zoo
from termwise.zoo import ratings, sentences
from termwise.zoo.assets import fetch
from termwise.zoo.pictures import PicturePreparation
from termwise.zoo.texts import FastTokenizer, TextPreparation

PREPARE = PicturePreparation(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Letters:
    """A tokenizer of ASCII."""

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def name(self, token):
        return chr(token)

    def __len__(self):
        return 128


TEXTS = TextPreparation(Letters(), limit=8)


# fmt: off
CASES = [
    Case("zoo.load", "an unknown name", lambda: zoo.load("mobilenet"),
         ValueError, "unknown model 'mobilenet': did you mean 'mobilenet-v2'? There are: mobilenet-v2, "
         "efficientnet-lite0, nanoguard, minilm, minilm-sentiment, smollm2-135m"),
    Case("zoo.load", "a path", lambda: zoo.load("../../etc/passwd"),
         ValueError, "unknown model '../../etc/passwd': There are: mobilenet-v2, efficientnet-lite0, nanoguard, minilm, "
         "minilm-sentiment, smollm2-135m"),
    Case("zoo.load", "a number", lambda: zoo.load(3),
         ValueError, "unknown model 3: There are: mobilenet-v2, efficientnet-lite0, nanoguard, minilm, minilm-sentiment, "
         "smollm2-135m"),
    Case("zoo.load", "nothing", lambda: zoo.load(""),
         ValueError, "unknown model '': There are: mobilenet-v2, efficientnet-lite0, nanoguard, minilm, "
         "minilm-sentiment, smollm2-135m"),
    Case("zoo.photo", "an unknown name", lambda: zoo.photo("chine"),
         ValueError, "unknown photo 'chine': did you mean 'china'? There are: china, flower, coffee, cat, rocket, "
         "astronaut"),
    Case("zoo.photo", "a number", lambda: zoo.photo(3),
         ValueError, "unknown photo 3: There are: china, flower, coffee, cat, rocket, astronaut"),
    Case("zoo.fetch", "an unknown name", lambda: fetch("photo-chinna"),
         ValueError, "unknown asset 'photo-chinna': did you mean 'photo-china'? There are: mobilenet-v2, "
         "efficientnet-lite0, imagenet-names, nanoguard, nanoguard-tokenizer, minilm, minilm-config, "
         "minilm-tokenizer, smollm2-135m, film-sentences, r-tables, photo-china, photo-flower, photo-coffee, "
         "photo-cat, photo-rocket, photo-astronaut"),
    Case("zoo.ratings.split", "an unknown part", lambda: ratings.split("tests"),
         ValueError, "unknown part 'tests': did you mean 'test'? There are: train, test"),
    Case("zoo.sentences.split", "an unknown part", lambda: sentences.split("dev"),
         ValueError, "unknown part 'dev': There are: train, look, test"),
    Case("zoo.pictures", "no file", lambda folder: PREPARE(folder / "a.jpg"),
         FileNotFoundError, "no picture file 'FOLDER/a.jpg'"),
    Case("zoo.pictures", "a folder", lambda folder: PREPARE(folder),
         FileNotFoundError, "no picture file 'FOLDER': it is a folder; name a file in it"),
    Case("zoo.pictures", "a number", lambda: PREPARE(3),
         TypeError, "a picture must be bytes, a path, a PIL image, an array or a tensor, got int"),
    Case("zoo.pictures", "None", lambda: PREPARE(None),
         TypeError, "a picture must be bytes, a path, a PIL image, an array or a tensor, got NoneType"),
    Case("zoo.pictures", "a list of numbers", lambda: PREPARE([1, 2, 3]),
         TypeError, "a picture must be bytes, a path, a PIL image, an array or a tensor, got list"),
    Case("zoo.pictures", "integers of 64 bits", lambda: PREPARE(np.ones((8, 8, 3), dtype=np.int64)),
         ValueError, "a picture's numbers are uint8, uint16, bool or floating in 0..1, got int64; where they lie in "
         "0..255, give them as astype('uint8')"),
    Case("zoo.pictures", "floats above 1", lambda: PREPARE(np.full((8, 8, 3), 255.0)),
         ValueError, "a floating picture must lie in 0..1, got 255..255: divide it by its range; a tensor that is "
         "normalised already goes to the model as it is"),
    Case("zoo.pictures", "NaN", lambda: PREPARE(np.full((8, 8, 3), np.nan)),
         ValueError, "a floating picture must lie in 0..1, got nan..nan: divide it by its range; a tensor that is "
         "normalised already goes to the model as it is"),
    Case("zoo.pictures", "no pixel", lambda: PREPARE(np.ones((0, 8, 3))),
         ValueError, "the array has no pixels: its shape is (0, 8, 3)"),
    Case("zoo.pictures", "channels first in an array", lambda: PREPARE(np.ones((3, 8, 9))),
         ValueError, "a picture has shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), got (3, 8, 9); transpose(1, 2, 0) "
         "puts its channels last"),
    Case("zoo.pictures", "channels last in a tensor", lambda: PREPARE(torch.ones(8, 9, 3)),
         ValueError, "a picture tensor has shape (c, h, w) with c of 1, 3 or 4, or (h, w), got (8, 9, 3); permute(2, 0, "
         "1) puts its channels first"),
    Case("zoo.pictures", "a batch of two", lambda: PREPARE(torch.ones(2, 3, 8, 8)),
         ValueError, "a picture tensor has shape (c, h, w) with c of 1, 3 or 4, or (h, w), got (2, 3, 8, 8)"),
    Case("zoo.pictures", "complex numbers", lambda: PREPARE(np.ones((8, 8), dtype=np.complex64)),
         ValueError, "a picture's numbers are uint8, uint16, bool or floating in 0..1, got complex64; where they lie in "
         "0..255, give them as astype('uint8')"),
    Case("zoo.pictures", "an array of objects", lambda: PREPARE(np.full((8, 8), None)),
         ValueError, "a picture's numbers are uint8, uint16, bool or floating in 0..1, got object; where they lie in "
         "0..255, give them as astype('uint8')"),
    Case("zoo.pictures", "a meta tensor", lambda: PREPARE(torch.ones(3, 8, 8, device="meta")),
         ValueError, "a picture on the meta device has no pixels: give one that has values"),
    Case("zoo.texts", "a list", lambda: TEXTS(["a", "b"]),
         TypeError, "a text must be one str, got list: prepare texts one by one"),
    Case("zoo.texts", "bytes", lambda: TEXTS(b"text"),
         TypeError, "a text must be one str, got bytes: prepare texts one by one"),
    Case("zoo.texts", "nothing", lambda: TEXTS(" "),
         ValueError, "the text is empty: there is nothing to explain; give at least one word"),
    Case("zoo.texts", "half a surrogate", lambda: TEXTS("a\ud800"),
         ValueError, "the text is not valid Unicode at character 1: surrogates not allowed"),
    Case("zoo.texts", "too long a text", lambda: TEXTS("a long sentence"),
         ValueError, "the text has 15 tokens and the model takes 8: shorten it, or keep its beginning with prepare(text, "
         "truncate=True)"),
    Case("zoo.texts.names", "two texts", lambda: TEXTS.names(torch.ones(2, 3, dtype=torch.long)),
         ValueError, "names are those of one text: input_ids of shape (1, tokens), got (2, 3)"),
    Case("zoo.FastTokenizer", "no file", lambda folder: FastTokenizer(folder / "tokenizer.json", raw=False),
         FileNotFoundError, "no tokenizer file 'FOLDER/tokenizer.json'"),
    Case("zoo.FastTokenizer", "no JSON", lambda folder: FastTokenizer(_text(folder), raw=False),
         ValueError, "FOLDER/text.txt is no tokenizer.json: ..."),
    Case("zoo.against", "a number for a subject", lambda: zoo.against(3, ["a"]),
         TypeError, "subject must be one of the zoo, as zoo.load('minilm'); got int"),
    Case("zoo.merge", "an unknown style", lambda: zoo.merge(["a"], "byte"),
         ValueError, "style is 'bytes' or 'wordpiece', or None to guess; got 'byte'"),
]
# fmt: on


def _text(folder):
    path = folder / "text.txt"
    path.write_text("no picture")
    return path
