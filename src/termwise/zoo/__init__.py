"""Real models and photographs, out of packages, each file checked by its sha256.

A subject is a model with all that is needed to ask it something and to read its answer:

    s = zoo.load("mobilenet-v2")
    x = s.prepare(zoo.photo("china"))
    s.classes[s.model(x).argmax()]          # 'palace'

`subjects` is the table of them, `photos` the names that `photo` knows. Where files are kept, and how to work without a
network: `assets`.
"""

from .catalogue import Entry, load, subjects
from .errors import AssetCorrupt, AssetMissing
from .minilm import against
from .photos import photo, photos
from .subject import Subject
from .words import merge

__all__ = [
    "AssetCorrupt",
    "AssetMissing",
    "Entry",
    "Subject",
    "against",
    "load",
    "merge",
    "photo",
    "photos",
    "subjects",
]
