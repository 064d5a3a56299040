"""One file per attack; a file here is in the catalogue by being here."""

import sys

from touchstone.methods.cards import MethodPackage

kind = "attack"
sys.modules[__name__].__class__ = MethodPackage
