"""Short common English words, and ways to draw them so that no two draws begin alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from servecap import rand

# Each is one token (with its leading blank) in practically every byte-pair vocabulary.
_TEXT = """
about above across act add after again against age ago air all along also always among and animal
answer any area arm around art ask away baby back bad ball base be bed before begin behind being
below best better between big black blue board body book both box boy bread break bring brother
build business but buy by call came can car card care carry case cat catch cause cell center
chance change check child city class clean clear close cold color come common cost could country
course court cover cross cry cup cut dark day deal dear deep did direct do doctor dog door double
down draw dream drink drive drop dry during each ear early earth east easy eat edge effect egg
eight else empty end engine enough even evening ever every eye face fact fall family far fast
father fear feel feet few field fill film find fine finish fire first fish five flat floor flow
fly follow food foot for force form forward four free fresh friend from front fruit full game gas
gave get girl give glass go gold gone good got government gray great green ground group grow had
hair half hall hand happy hard has have he head hear heart heat heavy held help her here high hill
him his history hit hold hole home hope horse hospital hot hour house how human hundred ice idea
if in inside into it job join just keep key kind king knew know land language large last late
laugh law lay lead learn leave left leg less let letter level lie life light like line list listen
little live local long look lost lot love low machine made main make man many map mark market
master matter may me mean meet men middle might million mind minute miss model moment money month
moon more morning most mother mouth move much music must my name near need never new news next
night no north nose not note nothing now number of off office often oil old on once one only open
or order other our out over own page paint pair paper park part party pass past pay people perhaps
person picture piece place plain plan plane plant play point poor port power present press price
problem public pull put question quick quiet race rain ran rate reach read ready real reason red
rest rich ride right ring rise river road rock roll room round row rule run safe said salt same
sat save saw say school sea season second see seem sell send sense set seven shape she short
should show side sign simple since sing sister sit six size skin sky sleep slow small so soft some
song soon sort sound south space speed spring square stage stand star start state station stay
step still stone stop store story strong study such sugar summer sun sure system table take talk
tall teach team tell ten test than that the their them then there they thick thin thing think
third this those though thought three through time to today together told too took top total touch
toward town trade train tree true try turn two type under unit until up us use very view visit
voice wait walk wall want warm was watch water way we weather week weight well went were west what
wheel when where which while white who whole why wide wife wild will wind window wine winter wish
with without woman wood word work world would write wrong year yes yet you young your
"""
WORDS = tuple(_TEXT.split())


class Draws:
    """Tuples of `positions` words, a different one for every index below len(words)**positions.

    The index runs through a permutation that depends on the seed, so that neither two requests
    of a run nor (nearly always) those of two runs begin with the same words.
    """

    def __init__(self, words: Sequence[str], positions: int, seed: int, *names: str) -> None:
        self.words = words
        self.positions = positions
        self._space = len(words) ** positions
        rng = rand.stream(seed, *names)
        self._step = rng.randrange(1, self._space + 1)
        while math.gcd(self._step, self._space) != 1:
            self._step = rng.randrange(1, self._space + 1)
        self._start = rng.randrange(self._space)

    def __getitem__(self, index: int) -> list[str]:
        place = (self._start + index * self._step) % self._space
        drawn = []
        for _ in range(self.positions):
            place, digit = divmod(place, len(self.words))
            drawn.append(self.words[digit])
        return drawn
