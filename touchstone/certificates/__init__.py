"""One file per certificate. Every module here is in the catalogue."""

import sys

from touchstone.methods.cards import MethodPackage

kind = "certificate"
sys.modules[__name__].__class__ = MethodPackage
