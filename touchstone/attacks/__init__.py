"""One file per attack. Every module here is in the catalogue."""

import sys

from touchstone.methods.cards import MethodPackage

kind = "attack"
sys.modules[__name__].__class__ = MethodPackage
